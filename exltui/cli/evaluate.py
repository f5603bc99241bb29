"""``exltui eval``: logits of given tokens, perplexity of a text, divergence from another model or cache."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exltui.cli.options import load_options, model_path
from exltui.cli.output import ProgressLine, print_json
from exltui.cli.source import read_ids, read_text
from exltui.errors import ExltuiError
from exltui.protocol import LoadOptions
from exltui.tokenizer import Tokenizer

if TYPE_CHECKING:
    from exltui.engine.model.loading import Model


def run_logits(options: argparse.Namespace) -> int:
    """Write the logits after each token of --ids to --out."""
    ids = read_ids(options.ids)
    directory, load = model_path(options), _exact(load_options(options))
    import numpy as np

    from exltui.engine.evaluate.logits import CHUNK, logits
    from exltui.engine.run.cache import parse_cache_mode

    line = ProgressLine()
    try:
        model = _load(directory, load, line)
        started = time.perf_counter()
        values = logits(
            model,
            ids,
            bits=parse_cache_mode(load.cache),
            chunk=getattr(options, "chunk_size", CHUNK),
            progress=lambda done, total: line("logits", done, total, "tokens"),
        ).numpy()
    finally:
        line.end()
    out = Path(options.out)
    new = out.with_name(f".{out.name}.new")
    try:
        with new.open("wb") as stream:
            np.savez(stream, logits=values)
        new.replace(out)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ExltuiError(f"{out} cannot be written: {error.strerror or error}", "check the folder and the room on its disk") from error
    seconds = time.perf_counter() - started
    if options.json:
        print_json({"out": str(out), "tokens": values.shape[0], "vocabulary": values.shape[1], "seconds": seconds})
    else:
        print(f"{out}: logits of {values.shape[0]:,} tokens over {values.shape[1]:,} entries, {seconds:.1f} s")
    return 0


def run_perplexity(options: argparse.Namespace) -> int:
    """Print the perplexity of a text or of token ids."""
    directory, load = model_path(options), _exact(load_options(options))
    ids = _ids(options, directory)
    from exltui.engine.evaluate.logits import CHUNK
    from exltui.engine.evaluate.perplexity import perplexity
    from exltui.engine.run.cache import parse_cache_mode

    line = ProgressLine()
    try:
        model = _load(directory, load, line)
        started = time.perf_counter()
        result = perplexity(
            model,
            ids,
            min(options.window, model.context),
            options.stride,
            bits=parse_cache_mode(load.cache),
            chunk=getattr(options, "chunk_size", CHUNK),
            progress=lambda done, total: line("perplexity", done, total, "tokens"),
        )
    finally:
        line.end()
    seconds = time.perf_counter() - started
    if options.json:
        figures = {"perplexity": result.perplexity, "nll": result.nll, "tokens": result.tokens, "windows": result.windows}
        print_json({**figures, "seconds": seconds})
    else:
        print(f"perplexity {result.perplexity:.4f} ({result.tokens:,} tokens in {result.windows} windows, {seconds:.1f} s)")
    return 0


def run_divergence(options: argparse.Namespace) -> int:
    """Print how far a model is from --against, or from its own plain weights with an f16 cache."""
    directory, load = model_path(options), _exact(load_options(options))
    ids = _ids(options, directory)
    from exltui.engine.evaluate.divergence import divergence
    from exltui.engine.evaluate.logits import CHUNK
    from exltui.engine.run.cache import parse_cache_mode

    plain = dataclasses.replace(load, load_as="f16", activations="fp32")
    line = ProgressLine()
    try:
        model = _load(directory, load, line)
        if options.against:
            base = _load(Path(options.against).expanduser(), dataclasses.replace(plain, lora=()), line)
        else:
            base = model if load == plain else _load(directory, plain, line)
        started = time.perf_counter()
        found = divergence(
            model,
            base,
            ids,
            min(options.window, model.context, base.context),
            bits=parse_cache_mode(load.cache),
            chunk=getattr(options, "chunk_size", CHUNK),
            progress=lambda done, total: line("divergence", done, total, "tokens"),
        )
    finally:
        line.end()
    if options.json:
        print_json({**dataclasses.asdict(found), "seconds": time.perf_counter() - started})
    else:
        print(f"KL divergence {found.kl:.6f} nats, {found.same:.2%} with the same likeliest token ({found.tokens:,} tokens)")
        print(f"perplexity {found.perplexity:.4f}, of what it is compared with {found.base_perplexity:.4f}")
    return 0


def _ids(options: argparse.Namespace, directory: Path) -> list[int]:
    """The tokens that --ids or --file names."""
    if options.ids:
        return read_ids(options.ids)
    tokenizer = Tokenizer(directory)
    return tokenizer.encode(read_text(options.file), parse_special=False, add_bos=tokenizer.adds_bos)


def _exact(load: LoadOptions) -> LoadOptions:
    """An evaluation speaks of the file: what loading for speed rounds is rounded only where a flag asks for it."""
    return dataclasses.replace(load, load_as=load.load_as or "f16", activations=load.activations or "fp32")


def _load(directory: Path, load: LoadOptions, line: ProgressLine) -> Model:
    from exltui.engine.model.loading import load_model
    from exltui.engine.session import use_threads

    use_threads(load.threads)
    return load_model(directory, load, line, lambda: False)
