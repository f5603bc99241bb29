"""The same prompts one by one and in batches, through what ``exltui bulk`` runs.

    python benchmarks/bulk.py (-m DIR | --synthetic llama-3.1-8b) [--batch 1,8,32] [--lines 32] [--prompt 128] [--reply 128] [--greedy]

Every pass answers the same lines with an empty cache, prompts included, after a short one that warms up its batch size. ``times`` compares
with the first batch size of the list; ``same`` counts the lines whose tokens are those of that pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from exltui import paths  # noqa: E402  (the checkout comes first on the path)
from exltui.cli.bulk import Journal, Tally, answer  # noqa: E402
from exltui.engine.convert.synthetic import SHAPES, write_synthetic  # noqa: E402
from exltui.engine.generate.generator import Generator  # noqa: E402
from exltui.engine.ops.types import PAGE  # noqa: E402
from exltui.engine.run.graphs import BUCKETS  # noqa: E402
from exltui.engine.session import Session, open_session  # noqa: E402
from exltui.protocol import JobSpec, LoadOptions, Sampling  # noqa: E402


def main() -> None:
    options = parse()
    batches = [int(part) for part in options.batch.split(",")]
    directory = Path(options.model) if options.model else synthetic(options.synthetic)
    each = -(-(options.prompt + options.reply) // PAGE) * PAGE
    load = LoadOptions(device=options.device, threads=options.threads, length=max(each, PAGE), cache_tokens=each * max(batches))
    load = replace(load, reproducible=options.reproducible)
    session = open_session(directory, load, lambda *_: None, lambda: False)
    model = session.runner.model
    name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{model.name}, {model.format}, on {name}: {options.lines} lines, prompts of {options.prompt}, replies of up to {options.reply}")
    print("batch    tok/s    times  ms a step   same")
    base = JobSpec("", sampling=Sampling(temperature=0.0 if options.greedy else 0.8, seed=0), max_new_tokens=options.reply)
    first: list[list[int]] = []
    rate = 0.0
    for batch in batches:
        session.generator.max_batch = batch
        for count in (size for size in BUCKETS if size <= batch):  # a graph is captured when a batch of its size first comes
            answered(session, lines(options, model.spec.vocab, count, 1), replace(base, max_new_tokens=4))
        with counted(session.generator) as steps:
            begin = time.perf_counter()
            replies = answered(session, lines(options, model.spec.vocab, options.lines, 0), base)
            seconds = time.perf_counter() - begin
        tokens = sum(map(len, replies))
        first, rate = first or replies, rate or tokens / seconds
        same = sum(a == b for a, b in zip(first, replies, strict=True))
        row = f"{batch:5} {tokens / seconds:8,.1f} {tokens / seconds / rate:8.2f} {1e3 * seconds / len(steps):10.2f}"
        print(f"{row} {same:4} of {len(replies)}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bulk inference: one by one against batches.")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("-m", "--model", metavar="DIR")
    model.add_argument("--synthetic", metavar="SHAPE", choices=SHAPES, help="random content at 4 bits a weight")
    parser.add_argument("--batch", default="1,8,32", help="at most 32 each")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--greedy", action="store_true", help="in place of the usual sampler")
    parser.add_argument("--reproducible", action="store_true", help="every line as if it were alone")
    for flag, default in (("--lines", 32), ("--prompt", 128), ("--reply", 128)):
        parser.add_argument(flag, type=int, default=default)
    return parser.parse_args()


def lines(options: argparse.Namespace, vocabulary: int, count: int, seed: int) -> list[str]:
    """Lines of random ids; special tokens, which stand at either end of a vocabulary, are not among them."""
    picks = np.random.default_rng(seed)
    return [json.dumps({"ids": picks.integers(vocabulary // 10, vocabulary // 2, options.prompt).tolist()}) for _ in range(count)]


def answered(session: Session, source: list[str], base: JobSpec) -> list[list[int]]:
    """The replies to ``source``, of a generator that has seen none of it."""
    generator = session.generator
    generator.table.clear()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.jsonl"
        with closing(Journal(target)) as journal:
            answer(generator, source, list(range(1, len(source) + 1)), base, journal, Tally(lines=len(source)))
            journal.finish(len(source))
        return [json.loads(line)["token_ids"] for line in target.read_text(encoding="utf-8").splitlines()]


@contextmanager
def counted(generator: Generator) -> Iterator[list[None]]:
    """A list that gets an entry for each step."""
    steps: list[None] = []
    plain: Any = generator.advance

    def advance() -> Any:
        steps.append(None)
        return plain()

    target: Any = generator
    target.advance = advance
    try:
        yield steps
    finally:
        del target.advance


def synthetic(shape: str) -> Path:
    """A model of random content, with a tokenizer of made-up words: it has no text to read and none to end."""
    directory = paths.synthetic_dir() / f"{shape}-4bpw-h6"
    if not directory.is_dir():
        write_synthetic(shape, 4.0, 6, directory)
    if not (directory / "tokenizer.json").exists():
        import tokenizers

        words = {f"w{i}": i for i in range(SHAPES[shape]["vocab_size"])}
        tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    return directory


if __name__ == "__main__":
    main()
