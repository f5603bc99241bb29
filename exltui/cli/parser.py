"""The parser of all commands. Every flag in it works; flags are named after the fields of LoadOptions and Sampling."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import exltui
from exltui.sampling import SETTINGS

Run = Callable[[argparse.Namespace], int]
Commands = Any  # argparse's own type for sub-commands has no public name


def build_parser() -> argparse.ArgumentParser:
    """The parser; its result has ``run``, the function of the chosen command."""
    parser = _Parser(
        prog="exltui",
        description="Chat with a language model in the terminal. Without a command, the full-screen app opens.",
        epilog="exltui COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"exltui {exltui.__version__}")
    _shared(parser)
    parser.add_argument("--session", metavar="ID", help="open this chat (the app)")
    parser.add_argument("--theme", metavar="NAME", help="colours of the app: dark, light, high-contrast, or one of your own")
    parser.add_argument("--linear", action="store_true", help="chat line by line, for screen readers and simple terminals (the app)")
    parser.set_defaults(run=_command("app"))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    _add_models(commands)
    _add_generate(commands)
    _add_bulk(commands)
    _add_eval(commands)
    _add_bench(commands)
    _add_doctor(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Flags must be written out: an abbreviation that works today could mean two flags tomorrow. Wrong usage gets a sentence."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{**keywords, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n        {self.prog} --help explains what can be said\n")


def _command(module: str, function: str = "run") -> Run:
    """``exltui.cli.MODULE``'s function, imported when it runs, so that --help is quick."""

    def run(options: argparse.Namespace) -> int:
        import importlib

        return int(getattr(importlib.import_module(f"exltui.cli.{module}"), function)(options))

    return run


def _shared(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """-m, --models-dir and the load options. On a command they override those before it."""
    parser.add_argument(
        "--models-dir", metavar="DIR", action="append", default=argparse.SUPPRESS, help="look for models here first; may be repeated"
    )
    if not model:
        return
    parser.add_argument("-m", "--model", metavar="MODEL", default=_default(parser), help="a model's name or directory")
    group = parser.add_argument_group("loading")

    def add(flag: str, kind: type, metavar: str, text: str) -> None:
        group.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)

    add("--device", str, "NAME", "cpu, or cuda:0 for the first GPU (default: the first GPU if there is one)")
    _positions(group)
    add("--cache-tokens", int, "TOKENS", "room for all jobs together, for large batches (default: the context)")
    add("--cache", str, "MODE", "KV cache: fp16, q8, q6, q4, or K,V bits such as 8,4 (default fp16)")
    add("--chunk-size", int, "TOKENS", "prompt tokens in one step (default 4096; on the CPU, and in eval, 256)")
    add("--max-batch", int, "N", "jobs that run at once, for exltui bulk and candidates (default 32, the most)")
    add("--threads", int, "N", "CPU threads (default: one for each core)")
    group.add_argument(
        "--lora", metavar="DIR[:SCALE]", action="append", default=argparse.SUPPRESS, help="use this LoRA adapter; may be repeated"
    )
    for name, text in (
        ("q4", "round plain weights to 4 bits"),
        ("q8", "round plain weights to 8 bits"),
        ("f16", "take plain weights as they are"),
    ):
        group.add_argument(
            f"--load-{name}", dest="load_as", action="store_const", const=name, default=argparse.SUPPRESS, help=f"on the CPU, {text}"
        )
    add("--host-cache", float, "GB", "host memory for pages that the cache has no room for (default 0)")
    add("--draft-model", str, "DIR", "a small model with the same vocabulary, which guesses ahead")
    group.add_argument("--ngram-draft", action="store_true", default=argparse.SUPPRESS, help="guess ahead from what the text had before")
    group.add_argument(
        "--reproducible", action="store_true", default=argparse.SUPPRESS, help="a seed gives the same tokens whatever else runs; slower"
    )
    add("--activations", str, "KIND", "of quantised weights on the CPU: int8 or fp32 (default int8)")


def _positions(group: Any) -> None:
    """The context, and what changes how the model knows positions."""
    for flag, kind, metavar, text in (
        ("--length", int, "TOKENS", "context to make room for (default: the model's own, at most 8192)"),
        ("--rope-scale", float, "X", "stretch positions by this factor"),
        ("--rope-alpha", float, "X", "NTK alpha for contexts beyond the trained one"),
        ("--rope-yarn", float, "X", "YaRN: stretch the trained context by this factor"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)


def _default(parser: argparse.ArgumentParser) -> Any:
    """A command's flag that was not given must not hide the same one before the command."""
    return None if parser.prog == "exltui" else argparse.SUPPRESS


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _sampler(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of the sampler, --preset below them and --greedy above."""
    group = parser.add_argument_group("sampler")
    group.add_argument("--preset", metavar="NAME", help="start from a preset: its name, or a .toml file; flags come before it")
    group.add_argument("--greedy", action="store_true", help="always the likeliest token")
    metavars = {"number": "X", "whole": "N", "text": "TEXT"}
    kinds = {"number": float, "whole": int, "text": str}
    for setting in SETTINGS:
        flag, default = f"--{setting.name.replace('_', '-')}", setting.default
        if setting.kind == "switch":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=setting.help.replace("%", "%%"))
            continue
        notes = [f"{setting.off} is off"] if setting.off not in (None, "") else []
        notes += [f"default {default}"] if setting.kind != "text" and default is not None else []
        text = f"{setting.help[:-1]} ({', '.join(notes)})" if notes else setting.help[:-1]
        group.add_argument(flag, type=kinds[setting.kind], metavar=metavars[setting.kind], help=text.replace("%", "%%"))


def _job(parser: argparse.ArgumentParser) -> None:
    """What a job can ask for beside its prompt and sampler."""
    length = parser.add_argument_group("length")
    length.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="at most N tokens (default: until the model ends or the context is full)"
    )
    length.add_argument("--min-new-tokens", type=int, metavar="N", help="the model does not end before N tokens")
    length.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    length.add_argument("--loop-window", type=int, metavar="N", help="end when the last N tokens are one passage, again and again")
    length.add_argument("--loop-repeats", type=int, metavar="N", help="how often it must be there (default 3)")
    words = parser.add_argument_group("words")
    words.add_argument("--ban", action="append", default=[], metavar="TEXT", help="never write this text; may be repeated")
    words.add_argument("--banned-tokens", metavar="ID,..", help="ids of tokens that are never drawn")
    words.add_argument("--allowed-tokens", metavar="ID,..", help="ids of the only tokens that are drawn")
    words.add_argument("--logit-bias", action="append", default=[], metavar="ID:X", help="add X to a token's logit; may be repeated")
    words.add_argument("--negative-prompt", metavar="TEXT", help="what --cfg-scale steers away from; with --chat, another system prompt")
    words.add_argument("--token-healing", action="store_true", help="draw the prompt's last token again, with what follows it")
    form = parser.add_argument_group("form of the reply (one of these)")
    form.add_argument("--json-schema", metavar="FILE", help="JSON that this schema allows; a schema that begins with { is taken as it is")
    form.add_argument("--regex", metavar="TEXT", help="text that matches this regular expression")
    form.add_argument("--choice", action="append", default=[], metavar="TEXT", help="one of these texts; repeat it for each")
    form.add_argument("--grammar", metavar="FILE", help="text of this grammar, in Lark's notation or GBNF")


def _add_bulk(commands: Commands) -> None:
    parser = commands.add_parser(
        "bulk",
        help="complete many prompts from a file",
        description='Many prompts at once. A line of the input is an object with "prompt" (or "ids") and what differs from the flags; '
        "a line of the output answers the same line of the input. Started again, it goes on where it was.",
    )
    parser.add_argument("input", metavar="IN.jsonl", help="one JSON object a line")
    parser.add_argument("output", metavar="OUT.jsonl", help="gets one JSON object a line, in the same order")
    _shared(parser)
    _sampler(parser)
    _job(parser)
    parser.set_defaults(run=_command("bulk"))


def _add_models(commands: Commands) -> None:
    models = commands.add_parser("models", help="list, get, describe and remove models", description="Models on this machine.")
    _shared(models, model=False)
    _json(models)
    models.set_defaults(run=_command("models", "show_list"))
    actions = models.add_subparsers(metavar="ACTION", title="actions", parser_class=_Parser)
    for name, text, function in (
        ("list", "list the models that are there (the default)", "show_list"),
        ("get", "fetch a model", "get"),
        ("info", "describe one model", "info"),
        ("rm", "remove a model", "remove"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        _shared(action, model=False)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object and nothing else")
        if name == "get":
            action.add_argument("name", metavar="NAME", help="smollm2-135m (the starter model), or OWNER/REPO[@REVISION] of the hub")
        elif name != "list":
            action.add_argument("name", metavar="MODEL", help="its name, or its directory")
        if name == "info":
            _positions(action.add_argument_group("as it would be loaded with"))
        if name == "rm":
            action.add_argument("--yes", action="store_true", help="do not ask")
        action.set_defaults(run=_command("models", function))


def _add_generate(commands: Commands) -> None:
    parser = commands.add_parser(
        "generate", help="complete one prompt", description="One completion: text on standard output, figures on standard error."
    )
    _shared(parser)
    _json(parser)
    prompt = parser.add_argument_group("prompt (one of these)")
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt itself")
    prompt.add_argument("-f", "--file", metavar="FILE", help="a file with the prompt")
    prompt.add_argument("--ids", metavar="FILE.json", help="a file with a JSON list of token ids")
    prompt.add_argument("stdin", nargs="?", choices=["-"], metavar="-", help="read the prompt from standard input")
    chat = parser.add_argument_group("chat")
    chat.add_argument("--chat", action="store_true", help="the prompt is a message: apply the model's chat template")
    chat.add_argument("--system", metavar="TEXT", help="with --chat, a system prompt")
    chat.add_argument("--chat-format", metavar="NAME", help="with --chat, a format by name in place of the model's template")
    _sampler(parser)
    _job(parser)
    more = parser.add_argument_group("replies")
    more.add_argument("--candidates", type=int, default=1, metavar="N", help="N replies, which read the prompt once (default 1)")
    more.add_argument("--top-tokens", type=int, metavar="N", help="with --json, how likely each token was, and the N likeliest beside it")
    parser.set_defaults(run=_command("generate"))


def _add_eval(commands: Commands) -> None:
    parser = commands.add_parser("eval", help="evaluate a model: logits, perplexity, divergence", description="Evaluate a model.")
    kinds = parser.add_subparsers(metavar="WHAT", title="evaluations", required=True, parser_class=_Parser)
    logits = kinds.add_parser("logits", help="the logits after each token", description="Write the logits after each of some tokens.")
    _shared(logits)
    _json(logits)
    logits.add_argument("--ids", metavar="FILE.json", required=True, help="a JSON list of token ids")
    logits.add_argument("--out", metavar="FILE.npz", required=True, help="gets `logits`, float32 [tokens, vocab]")
    logits.set_defaults(run=_command("evaluate", "run_logits"))
    ppl = kinds.add_parser("ppl", help="perplexity of a text", description="Perplexity of a text, in windows.")
    _shared(ppl)
    _json(ppl)
    _evaluated(ppl)
    ppl.add_argument("--stride", type=int, metavar="TOKENS", help="from one window's start to the next's (default: the window)")
    ppl.set_defaults(run=_command("evaluate", "run_perplexity"))
    kld = kinds.add_parser(
        "kld",
        help="divergence from another model, or of a cache or a way of loading from none",
        description="Mean KL divergence over a text: from --against, or of --cache and --load-q4 from plain weights with an f16 cache.",
    )
    _shared(kld)
    _json(kld)
    _evaluated(kld)
    kld.add_argument("--against", metavar="DIR", help="the model to compare with, such as the one that a quantised one was made of")
    kld.set_defaults(run=_command("evaluate", "run_divergence"))


def _evaluated(parser: argparse.ArgumentParser) -> None:
    """What an evaluation reads, and in what windows."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-f", "--file", metavar="FILE", help="a text file")
    source.add_argument("--ids", metavar="FILE.json", help="a JSON list of token ids")
    parser.add_argument("--window", type=int, default=2048, metavar="TOKENS", help="tokens of a window (default 2048)")


def _add_bench(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure speed",
        description="Speed of reading prompts and of decoding, with the bytes of a step and their share of a copy's speed.",
    )
    _shared(parser)
    _json(parser)
    shape = parser.add_argument_group("a model of random content, in place of -m")
    shape.add_argument(
        "--synthetic", metavar="SHAPE", help="its shape: llama-3.1-8b, llama-3.1-70b, llama-3.2-1b, tinyllama-1.1b, smollm2-135m"
    )
    shape.add_argument("--bpw", type=float, default=4.0, metavar="BITS", help="bits a weight (default 4.0)")
    shape.add_argument("--head-bits", type=int, default=6, metavar="BITS", help="bits a weight of the output head (default 6)")
    what = parser.add_argument_group("what is measured (lists of numbers, such as 512,2048)")
    what.add_argument("--prefill", metavar="TOKENS", help="lengths of prompts (default 512,2048,8192; on the CPU 512)")
    what.add_argument("--context", metavar="TOKENS", help="tokens before the decoding (default 0,4096,16384,32768; on the CPU 0,1024)")
    what.add_argument("--batch", metavar="N", help="sequences that decode together (default 1,8,32; on the CPU 1)")
    what.add_argument("--steps", type=int, default=32, metavar="N", help="decode steps of a measurement (default 32)")
    parser.set_defaults(run=_command("bench"))


def _add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor", help="say what is wrong and how to mend it", description="Look at the machine: what is there, what is wrong, the fix."
    )
    _shared(parser, model=False)
    _json(parser)
    parser.add_argument("--ops", action="store_true", help="also print the op table: which operations have kernels")
    parser.set_defaults(run=_command("doctor"))
