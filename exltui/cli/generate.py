"""``exltui generate``: one completion, streamed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltui.cli.options import load_options, model_path, sampling_options
from exltui.cli.output import ProgressLine, print_json
from exltui.cli.source import read_ids, read_text
from exltui.errors import ExltuiError
from exltui.protocol import Done, Event, Failed, JobSpec, Stats, Text
from exltui.text import strip_terminal
from exltui.tokenizer import Tokenizer

if TYPE_CHECKING:
    from exltui.engine.generate.generator import Generator
    from exltui.engine.session import Session


def run(options: argparse.Namespace) -> int:
    """Generate; with --json print the whole as one object, else stream the text and print the figures on standard error."""
    problem = _usage_problem(options)
    if problem:
        print(f"exltui generate: {problem}", file=sys.stderr)
        return 2
    directory = model_path(options)
    prompt: str | list[int] = read_ids(options.ids) if options.ids else _text(options)
    if not prompt:
        raise ExltuiError("the prompt is empty", "give it with -p TEXT, -f FILE, --ids FILE.json, or - for standard input")
    stops, add_bos = tuple(options.stop), None
    if options.chat:
        prompt, ends = _chat(directory, str(prompt), options)
        stops, add_bos = (*stops, *ends), False
    given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
    sampling = sampling_options(options)
    job = JobSpec("job", **given, sampling=sampling, max_new_tokens=options.max_new_tokens, stop_strings=stops, add_bos=add_bos)
    session = load_session(directory, options)
    if session.problem:
        print(f"exltui: this will be slow: {session.problem}", file=sys.stderr)
    for note in session.runner.model.notes:
        print(f"exltui: {note}", file=sys.stderr)
    pieces: list[str] = []
    write = pieces.append if options.json else _write
    for event in _events(session.generator, job):
        if isinstance(event, Failed):
            raise ExltuiError(event.error, event.hint)
        if isinstance(event, Text):
            write(event.text)
        elif isinstance(event, Done):
            if options.json:
                print_json(_report("".join(pieces), event))
            else:
                sys.stdout.write("\n")
                sys.stdout.flush()
                print(_figures(event.stats), file=sys.stderr)
    return 0


def _usage_problem(options: argparse.Namespace) -> str:
    """What is wrong with the combination of flags, or ""."""
    given = [name for name in ("prompt", "file", "ids", "stdin") if getattr(options, name) is not None]
    if len(given) != 1:
        return "say what to complete with one of -p TEXT, -f FILE, --ids FILE.json, or - for standard input"
    if options.chat and options.ids:
        return "--chat takes text, --ids has none"
    if not options.chat and (options.system or options.chat_format):
        return "--system and --chat-format go with --chat"
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        return "--max-new-tokens must be 1 or more"
    if options.greedy and options.temperature is not None:
        return "--greedy and --temperature exclude each other"
    return ""


def _text(options: argparse.Namespace) -> str:
    return str(options.prompt) if options.prompt is not None else read_text(options.file or options.stdin)


def _chat(directory: Path, text: str, options: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """(the rendered conversation of one message, the strings at which a reply ends)."""
    from exltui.chat.template import load_template

    template = load_template(Tokenizer(directory), options.chat_format or "")
    if template.note:
        print(template.note, file=sys.stderr)
    system = [{"role": "system", "content": options.system}] if options.system else []
    return template.prompt([*system, {"role": "user", "content": text}]), tuple(template.stop_strings)


def load_session(directory: Path, options: argparse.Namespace) -> Session:
    """The model in ``directory``, with a progress line while it loads."""
    from exltui.engine.session import open_session

    line = ProgressLine()
    try:
        return open_session(directory, load_options(options), line, lambda: False)
    finally:
        line.end()


def _events(generator: Generator, job: JobSpec) -> Iterator[Event]:
    """All that happens from the submission of ``job`` to its Done."""
    yield from generator.submit(job)
    while job.id in generator.job_ids:
        yield from generator.advance()


def _write(text: str) -> None:
    """Text as it comes; a terminal gets none of the control characters that a model may write."""
    sys.stdout.write(strip_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _figures(stats: Stats) -> str:
    """One line for people."""

    def rate(tokens: int, seconds: float) -> str:
        return f"{tokens / seconds:,.0f} tok/s" if tokens > 0 and seconds > 0 else "-"

    read = rate(stats.prompt_tokens - stats.cached_tokens, stats.prefill_seconds)
    wrote = rate(stats.new_tokens - 1, stats.decode_seconds)  # the first comes with the prompt
    return (
        f"prompt {stats.prompt_tokens:,} tokens, {read}; reply {stats.new_tokens:,} tokens, {wrote}; "
        f"{stats.stop_reason.replace('_', ' ')}; seed {stats.seed}"
    )


def _report(text: str, done: Done) -> dict[str, Any]:
    """The object of --json, with exactly these keys."""
    figures = asdict(done.stats)
    keys = ("prompt_tokens", "cached_tokens", "new_tokens", "prefill_seconds", "decode_seconds", "stop_reason", "seed")
    return {"text": text, "token_ids": list(done.token_ids), **{key: figures[key] for key in keys}}
