"""What loading a plain model at fewer bits costs, and what it brings, on the CPU: all modes on one text, in one run.

    python benchmarks/modes.py [--model DIR] [--text FILE ..] [--tokens 1024] [--threads 1] [--rounds 5]

For each mode of --load-* and --activations: perplexity, its rise over f16, the mean KL divergence from f16 in nats, how often the
likeliest token is the same, and tokens per second of decoding, of which the modes take turns. At the end the default that follows: the
fastest mode whose perplexity rises by less than 1%. The text is tests/data/thousand_tokens.md unless named.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from exltui.engine.evaluate.logits import logits
from exltui.engine.session import Session, open_session
from exltui.protocol import JobSpec, LoadOptions, Sampling, Text

ROOT = Path(__file__).resolve().parent.parent
MODES = [("f16", "fp32"), ("q8", "fp32"), ("q8", "int8"), ("q4", "fp32"), ("q4", "int8")]  # the first is what the others are compared with
WINDOW = 512  # tokens that are scored together
REPLY = 64  # tokens of a round of decoding
ALLOWED = 0.01  # by which the perplexity of a default may rise


@dataclass(slots=True)
class Mode:
    name: str
    session: Session
    losses: list[Tensor] = field(default_factory=list)
    divergences: list[Tensor] = field(default_factory=list)
    same: list[Tensor] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        return math.exp(float(torch.cat(self.losses).double().mean()))

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)


def open_mode(load_as: str, activations: str, options: argparse.Namespace) -> Mode:
    wanted = LoadOptions(device="cpu", threads=options.threads, length=2 * WINDOW, load_as=load_as, activations=activations)
    name = f"--load-{load_as}" + (f" --activations {activations}" if load_as != "f16" else "")
    return Mode(name, open_session(Path(options.model), wanted, lambda *_: None, lambda: False))


def score(modes: list[Mode], ids: list[int]) -> None:
    """Compare all modes on one window."""
    base = logits(modes[0].session.runner.model, ids).log_softmax(-1)
    targets = torch.tensor(ids[1:])
    for mode in modes:
        mine = base if mode is modes[0] else logits(mode.session.runner.model, ids).log_softmax(-1)
        mode.losses.append(-mine[:-1].gather(1, targets.unsqueeze(1)).squeeze(1))
        mode.divergences.append((base.exp() * (base - mine)).sum(-1))
        mode.same.append((base.argmax(-1) == mine.argmax(-1)).double())


def decode(session: Session, ids: list[int]) -> float:
    """Tokens a second after the first."""
    generator, marks = session.generator, list[float]()
    generator.submit(JobSpec("j", prompt_ids=tuple(ids), max_new_tokens=REPLY, sampling=Sampling(temperature=0.0), stop_token_ids=()))
    while generator.job_ids:
        marks += [time.perf_counter() for event in generator.advance() if isinstance(event, Text) and event.tokens]
    return (len(marks) - 1) / (marks[-1] - marks[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path.home() / ".local/share/exltui/models/smollm2-135m"))
    parser.add_argument("--text", nargs="*", default=[str(ROOT / "tests" / "data" / "thousand_tokens.md")])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    modes = [open_mode(load_as, activations, options) for load_as, activations in MODES]
    text = "\n".join(Path(file).read_text(encoding="utf-8") for file in options.text)
    ids = modes[0].session.tokenizer.encode(text)[: options.tokens]
    for start in range(0, len(ids) - 1, WINDOW):
        score(modes, ids[start : start + WINDOW])
    for turn in range(options.rounds + 1):
        for mode in modes:
            speed = decode(mode.session, ids[turn : turn + 32])
            mode.speeds += [speed] if turn else []  # the first round warms up
    base = modes[0].perplexity
    print(f"{len(ids)} tokens in windows of {WINDOW}, {options.threads} threads, decoding {REPLY} tokens, medians of {options.rounds}")
    print(f"{'mode':<32} {'perplexity':>10} {'rise':>7} {'KL':>8} {'same':>6} {'tokens/s':>9}")
    for mode in modes:
        kl, same = float(torch.cat(mode.divergences).mean()), float(torch.cat(mode.same).mean())
        print(f"{mode.name:<32} {mode.perplexity:>10.3f} {mode.perplexity / base - 1:>+7.2%} {kl:>8.1e} {same:>6.1%} {mode.speed:>9.1f}")
    kept = [mode for mode in modes if mode.perplexity / base - 1 < ALLOWED]
    print(f"the fastest whose perplexity rises by less than {ALLOWED:.0%}: {max(kept, key=lambda mode: mode.speed).name}")


if __name__ == "__main__":
    main()
