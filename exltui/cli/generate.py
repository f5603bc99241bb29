"""``exltui generate``: one completion, streamed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exltui.cli.options import job_options, load_options, model_path, sampling_options
from exltui.cli.output import ProgressLine, print_json
from exltui.cli.source import read_ids, read_text
from exltui.errors import ExltuiError
from exltui.protocol import Done, Event, Failed, JobSpec, Scores, Stats, Text
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
    job = job_options(options)
    job |= {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
    if options.chat:
        _chat(directory, job, options)
    job["top_tokens"] = options.top_tokens or 0
    sampling = sampling_options(options)
    session = load_session(directory, options)
    if session.problem:
        print(f"exltui: this will be slow: {session.problem}", file=sys.stderr)
    for note in session.runner.model.notes:
        print(f"exltui: {note}", file=sys.stderr)
    if options.candidates == 1 and not options.json:
        _stream(session.generator, JobSpec("job", sampling=sampling, **job))
        return 0
    seeds = [sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + i) for i in range(options.candidates)]
    jobs = [JobSpec(f"job-{i}", sampling=each, **job) for i, each in enumerate(seeds)]
    reports = _together(session.generator, jobs, session.tokenizer)
    if options.json:
        print_json(reports[0] if options.candidates == 1 else {"candidates": reports})
        return 0
    for i, report in enumerate(reports):
        print(f"--- {i + 1} of {len(reports)}, seed {report['seed']}", file=sys.stderr, flush=True)
        _write(f"{report['text']}\n")
    return 0


def _stream(generator: Generator, job: JobSpec) -> None:
    """One reply as it is written, then its figures."""
    for event in _events(generator, [job]):
        if isinstance(event, Text):
            _write(event.text)
        elif isinstance(event, Done):
            _write("\n")
            print(_figures(event.stats), file=sys.stderr)


def _together(generator: Generator, jobs: list[JobSpec], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The object of --json for each of ``jobs``, which run together."""
    pieces: dict[str, list[str]] = {job.id: [] for job in jobs}
    scores: dict[str, list[Scores]] = {job.id: [] for job in jobs}
    reports: dict[str, dict[str, Any]] = {}
    for event in _events(generator, jobs):
        if isinstance(event, Text):
            pieces[event.id].append(event.text)
        elif isinstance(event, Scores):
            scores[event.id].append(event)
        elif isinstance(event, Done):
            reports[event.id] = _report("".join(pieces[event.id]), event)
            if scores[event.id]:
                reports[event.id]["scores"] = [_scored(each, tokenizer) for each in scores[event.id]]
    return [reports[job.id] for job in jobs]


def _scored(event: Scores, tokenizer: Tokenizer) -> dict[str, Any]:
    def named(tokens: tuple[tuple[int, float], ...]) -> list[dict[str, Any]]:
        return [{"token": token, "text": tokenizer.texts[token], "probability": chance} for token, chance in tokens]

    (own,) = named(((event.token, event.probability),))
    return {**own, "raw_probability": event.raw_probability, "top": named(event.top), "raw_top": named(event.raw_top)}


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
    if not 1 <= options.candidates <= 32:
        return "--candidates is a number from 1 to 32"
    if options.top_tokens and not options.json:
        return "--top-tokens goes with --json"
    if options.greedy and options.temperature is not None:
        return "--greedy and --temperature exclude each other"
    return ""


def _text(options: argparse.Namespace) -> str:
    return str(options.prompt) if options.prompt is not None else read_text(options.file or options.stdin)


def _chat(directory: Path, job: dict[str, Any], options: argparse.Namespace) -> None:
    """Make ``job``'s prompt a conversation of one message, and a negative prompt another system prompt of it."""
    from exltui.chat.template import load_template

    template = load_template(Tokenizer(directory), options.chat_format or "")
    if template.note:
        print(template.note, file=sys.stderr)
    message = {"role": "user", "content": job["prompt"]}

    def rendered(system: str | None) -> str:
        return template.prompt([*([{"role": "system", "content": system}] if system else []), message])

    job["prompt"] = rendered(options.system)
    if options.negative_prompt is not None:
        job["negative_prompt"] = rendered(options.negative_prompt)
    job |= {"stop_strings": (*job["stop_strings"], *template.stop_strings), "add_bos": False}


def load_session(directory: Path, options: argparse.Namespace) -> Session:
    """The model in ``directory``, with a progress line while it loads."""
    from exltui.engine.session import open_session

    line = ProgressLine()
    try:
        return open_session(directory, load_options(options), line, lambda: False)
    finally:
        line.end()


def _events(generator: Generator, jobs: list[JobSpec]) -> Iterator[Event]:
    """All that happens from the submission of ``jobs`` to the last Done. Raises ExltuiError for a job that fails."""
    events = [event for job in jobs for event in generator.submit(job)]
    while events or generator.busy:
        for event in events:
            if isinstance(event, Failed):
                raise ExltuiError(event.error, event.hint)
            yield event
        events = generator.advance() if generator.busy else []


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
    guesses = stats.accepted_drafts + stats.rejected_drafts
    drafts = f"; {stats.accepted_drafts:,} of {guesses:,} guesses held" if guesses else ""
    return (
        f"prompt {stats.prompt_tokens:,} tokens, {read}; reply {stats.new_tokens:,} tokens, {wrote}; "
        f"{stats.stop_reason.replace('_', ' ')}; seed {stats.seed}{drafts}"
    )


def _report(text: str, done: Done) -> dict[str, Any]:
    """The object of --json, with exactly these keys, and two more where there were guesses."""
    figures = asdict(done.stats)
    keys: tuple[str, ...] = ("prompt_tokens", "cached_tokens", "new_tokens", "prefill_seconds", "decode_seconds", "stop_reason", "seed")
    if done.stats.accepted_drafts or done.stats.rejected_drafts:
        keys += ("accepted_drafts", "rejected_drafts")
    return {"text": text, "token_ids": list(done.token_ids), **{key: figures[key] for key in keys}}
