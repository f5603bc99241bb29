"""``exltui generate``: one completion, streamed."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exltui.cli.options import load_options, model_path, sampling_options
from exltui.cli.output import ProgressLine, print_json
from exltui.cli.source import read_ids, read_text
from exltui.errors import ExltuiError
from exltui.protocol import Stats
from exltui.text import strip_terminal
from exltui.tokenizer import Tokenizer


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
    job: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "stop_strings": tuple(options.stop)}
    if options.chat:
        prompt, stops = _chat(directory, str(prompt), options)
        job |= {"stop_strings": (*job["stop_strings"], *stops), "add_bos": False}
    with _open(directory, options) as engine:
        sampling = sampling_options(options)
        if options.json:
            completion = engine.generate(prompt, sampling, **job)
            print_json(_report(completion.text, completion.token_ids, completion.stats))
        else:
            _stream(engine, prompt, sampling, job)
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


def _open(directory: Path, options: argparse.Namespace) -> Any:
    from exltui.engine.api import Engine
    from exltui.engine.session import open_session

    line = ProgressLine()
    try:
        return Engine(open_session(directory, load_options(options), line, lambda: False))
    finally:
        line.end()


def _stream(engine: Any, prompt: str | list[int], sampling: Any, job: dict[str, Any]) -> None:
    """Text as it comes; a terminal gets none of the control characters that a model may write."""
    clean = strip_terminal if sys.stdout.isatty() else str
    for piece in engine.stream(prompt, sampling, **job):
        sys.stdout.write(clean(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def _report(text: str, token_ids: tuple[int, ...], stats: Stats) -> dict[str, Any]:
    """The object of --json, with exactly these keys."""
    figures = asdict(stats)
    keys = ("prompt_tokens", "cached_tokens", "new_tokens", "prefill_seconds", "decode_seconds", "stop_reason", "seed")
    return {"text": text, "token_ids": list(token_ids), **{key: figures[key] for key in keys}}
