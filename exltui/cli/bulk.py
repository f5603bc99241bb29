"""``exltui bulk``: many prompts through continuous batching, one JSON object a line, in the order of the input.

The output is its own journal. Finished lines that still wait for an earlier one lie in ``OUT.jsonl.part`` beside it, so that a run which
was killed goes on behind what it had: a line counts as done when it ends with a newline, and each names the line it answers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from exltui.cli.generate import load_session
from exltui.cli.options import job_options, model_path, sampling_options
from exltui.errors import ExltuiError
from exltui.protocol import Done, Event, Failed, JobSpec, Sampling, Text

if TYPE_CHECKING:
    from exltui.engine.generate.generator import Generator

AHEAD = 64  # jobs that are submitted before they can run, so that the batch is never short of one
REPORT = 1.0  # seconds between two progress lines on a terminal
QUIET_REPORT = 30.0
SAMPLING_KEYS = {each.name for each in dataclasses.fields(Sampling)}
LIST_KEYS = {"stop_strings", "stop_token_ids", "banned_strings", "banned_tokens", "allowed_tokens", "choices", "logit_bias"}
JOB_KEYS = {
    "max_new_tokens",
    "min_new_tokens",
    "negative_prompt",
    "loop_window",
    "loop_repeats",
    "token_healing",
    "add_bos",
    "json_schema",
    "regex",
    "grammar",
    *LIST_KEYS,
}
OWN_KEYS = {"prompt", "ids", "id", "sampling"}


@dataclass(slots=True)
class Tally:
    """What was done, for the progress line and the last word."""

    lines: int = 0
    before: int = 0  # done by an earlier run
    done: int = 0
    malformed: list[int] = field(default_factory=list)
    failed: int = 0
    read: int = 0
    written: int = 0


def run(options: argparse.Namespace) -> int:
    """Answer every line of the input. Exit status 0, or 1 if a line was malformed or failed."""
    source, target = Path(options.input), Path(options.output)
    lines = _read(source)
    journal = Journal(target)
    tally = Tally(lines=len(lines), before=len(journal.known))
    if strange := next((number for number in journal.known if number > len(lines)), None):
        raise ExltuiError(f"{target} answers line {strange}, {source} has {len(lines)}", "it belongs to another input; name another output")
    sampling = sampling_options(options)
    base = JobSpec("", sampling=sampling, priority=-1, **job_options(options))
    with contextlib.closing(journal):
        wanted = [number for number in range(1, len(lines) + 1) if number not in journal.known]
        if wanted:
            session = load_session(model_path(options), options)
            answer(session.generator, lines, wanted, base, journal, tally)
        journal.finish(len(lines))
    _say(tally)
    return 1 if tally.malformed or tally.failed else 0


def _read(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n").split("\n") if source.stat().st_size else []
    except OSError as error:
        raise ExltuiError(f"{source} cannot be read: {error.strerror or error}", "check the file's name and permissions") from error


def parse(line: str, number: int, base: JobSpec) -> JobSpec:
    """The job of one input line. Raises ValueError that says what is wrong with it."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    if ("prompt" in values) == ("ids" in values):
        raise ValueError('it must have one of "prompt" and "ids"')
    unknown = sorted(set(values) - OWN_KEYS - JOB_KEYS - SAMPLING_KEYS)
    if unknown:
        raise ValueError(f'"{unknown[0]}" is not known')
    if not isinstance(values.get("prompt", ""), str):
        raise ValueError('its "prompt" is not a text')
    ids = values.get("ids")
    if ids is not None and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise ValueError('its "ids" are not token ids')
    if wrong := next((key for key in LIST_KEYS & set(values) if not isinstance(values[key], list)), None):
        raise ValueError(f'its "{wrong}" is not a list')
    given = values.get("sampling", {})
    if not isinstance(given, dict) or set(given) - SAMPLING_KEYS:
        raise ValueError('its "sampling" is not an object of sampler settings')
    given = {**given, **{key: value for key, value in values.items() if key in SAMPLING_KEYS}}
    seed = {} if base.sampling.seed is None else {"seed": base.sampling.seed + number}  # not all lines draw the same points
    changes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in JOB_KEYS}
    prompt: dict[str, Any] = {"prompt": values["prompt"]} if ids is None else {"prompt_ids": tuple(ids)}
    sampling = dataclasses.replace(base.sampling, **{**seed, **given})
    return dataclasses.replace(base, id=str(number), sampling=sampling, **prompt, **changes)


def answer(generator: Generator, lines: list[str], wanted: list[int], base: JobSpec, journal: Journal, tally: Tally) -> None:
    """Run the ``wanted`` lines, many at once, and write each as it ends."""
    texts: dict[str, list[str]] = {}
    progress, queue = Progress(tally), iter(wanted)
    started_read, started_drawn = generator.tokens_read, generator.tokens_drawn
    more = True
    while more or generator.busy:
        while more and len(texts) < AHEAD:
            number = next(queue, None)
            more = number is not None
            if number is not None and (events := _submit(generator, lines[number - 1], number, base, journal, tally)):
                texts[str(number)] = []
                _take(events, lines, texts, journal, tally)
        _take(generator.advance(), lines, texts, journal, tally)
        tally.read, tally.written = generator.tokens_read - started_read, generator.tokens_drawn - started_drawn
        progress.show()
    progress.end()


def _submit(generator: Generator, line: str, number: int, base: JobSpec, journal: Journal, tally: Tally) -> list[Event]:
    """Queue a line, or write what is wrong with it."""
    try:
        return generator.submit(parse(line, number, base))
    except (ValueError, TypeError, RecursionError) as error:
        sentence = f"line {number} is malformed: {error}"
        tally.malformed.append(number)
        print(f"exltui bulk: {sentence}", file=sys.stderr)
    except ExltuiError as error:
        sentence = str(error)
        tally.failed += 1
    journal.write(number, {"line": number, "error": sentence})
    return []


def _take(events: list[Event], lines: list[str], texts: dict[str, list[str]], journal: Journal, tally: Tally) -> None:
    for event in events:
        if isinstance(event, Text):
            texts[event.id].append(event.text)
        elif isinstance(event, (Done, Failed)):
            number, text = int(event.id), "".join(texts.pop(event.id))
            own = json.loads(lines[number - 1]).get("id")
            names = {"line": number, **({} if own is None else {"id": own})}
            if isinstance(event, Failed):
                tally.failed += 1
                journal.write(number, {**names, "error": event.error})
            else:
                tally.done += 1
                stats = event.stats
                figures = {"prompt_tokens": stats.prompt_tokens, "cached_tokens": stats.cached_tokens, "new_tokens": stats.new_tokens}
                result = {"text": text, "token_ids": list(event.token_ids), "stop_reason": stats.stop_reason, "seed": stats.seed}
                journal.write(number, {**names, **result, **figures})


class Journal:
    """The output in the order of the input, and beside it what is finished before its turn. Raises ExltuiError if they cannot be read."""

    def __init__(self, target: Path) -> None:
        self._part = target.with_name(f"{target.name}.part")
        self._waiting: dict[int, bytes] = {}
        try:
            out, part = list(_whole_lines(target)), list(_whole_lines(self._part))
            if [number for number, _ in out] != list(range(1, len(out) + 1)):
                raise ExltuiError(f"{target} was not written by exltui bulk", "name another output, or move that file away")
            self._next = len(out) + 1
            self._waiting = {number: line for number, line in part if number >= self._next}
            self.known = {number for number, _ in out} | set(self._waiting)
            self._out = self._open(target, sum(len(line) for _, line in out))
            self._beside = self._open(self._part, sum(len(line) for _, line in part))
        except OSError as error:
            raise ExltuiError(f"{target} cannot be written: {error.strerror or error}", "check the folder and its permissions") from error

    @staticmethod
    def _open(path: Path, length: int) -> BinaryIO:
        """``path`` behind its whole lines; half a line that a killed run left is cut off."""
        file = path.open("ab")
        file.truncate(length)
        return file

    def write(self, number: int, result: dict[str, Any]) -> None:
        """Keep a finished line: once this returns, a kill does not lose it."""
        line = json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        self._waiting[number] = line
        if number != self._next:
            self._beside.write(line)
            self._beside.flush()
        self._advance()

    def _advance(self) -> None:
        while self._next in self._waiting:
            self._out.write(self._waiting.pop(self._next))
            self._next += 1
        self._out.flush()

    def finish(self, lines: int) -> None:
        """Everything is in its place: the file beside is not needed any more."""
        self._advance()
        os.fsync(self._out.fileno())
        if self._next == lines + 1:
            self._part.unlink(missing_ok=True)

    def close(self) -> None:
        self._out.close()
        self._beside.close()


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number of the input line, the line) for every line of ``path`` that was written to its end."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        try:
            yield int(json.loads(line)["line"]), line
        except (ValueError, KeyError, TypeError) as error:
            raise ExltuiError(f"{path} was not written by exltui bulk", "name another output, or move that file away") from error


class Progress:
    """Now and then a line on standard error: lines done, tokens a second, time to go."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._terminal = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def show(self) -> None:
        now = time.monotonic()
        if now - self._shown < (REPORT if self._terminal else QUIET_REPORT):
            return
        self._shown = now
        text = self.line(now - self._began)
        sys.stderr.write(f"\r\x1b[2K{text}" if self._terminal else f"{text}\n")
        sys.stderr.flush()

    def line(self, passed: float) -> str:
        tally = self._tally
        here = tally.done + tally.failed + len(tally.malformed)
        left = tally.lines - tally.before - here
        eta = f", {_clock(left * passed / here)} to go" if here and left else ""
        return (
            f"{tally.before + here:,} of {tally.lines:,} lines, read {tally.read / passed:,.0f} tok/s, "
            f"wrote {tally.written / passed:,.0f} tok/s{eta}"
        )

    def end(self) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{self.line(max(time.monotonic() - self._began, 1e-9))}\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _say(tally: Tally) -> None:
    parts = [f"{tally.done:,} lines answered"]
    parts += [f"{tally.before:,} were there"] if tally.before else []
    parts += [f"{tally.failed:,} failed"] if tally.failed else []
    parts += [f"malformed: {', '.join(map(str, tally.malformed))}"] if tally.malformed else []
    print(f"exltui bulk: {'; '.join(parts)}", file=sys.stderr)
