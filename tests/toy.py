"""A language model small enough to check every token of a generator by hand.

The cache of the toy keeps the tokens themselves. Logits are a function of all tokens up to a position, read through the page table, so
a wrong page, a stale row or a copy that is too short gives other tokens than ``expected`` finds without any cache.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from exltui.engine.generate.generator import Generator
from exltui.engine.generate.sampling import Occurrences, Sampler
from exltui.engine.ops import bind
from exltui.engine.ops.sample import TOO_MANY, Penalties, SampleParams, sample
from exltui.engine.run import pages, step
from exltui.engine.run.graphs import Place
from exltui.engine.run.step import Sequence, Step
from exltui.protocol import Done, Event, JobSpec

VOCABULARY = 16
EOS = 0
LETTERS = "§abcdefghijklmno"


def toy_logits(tokens: list[int]) -> np.ndarray:
    """[16] f32, different for every sequence of tokens; the end is unlikely."""
    seed = zlib.crc32(np.array(tokens, dtype=np.int32).tobytes())
    values = np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * 2
    values[EOS] -= 4
    return values


def decode(ids: list[int]) -> str:
    return "".join(LETTERS[i] for i in ids)


def ids_with(characters: str) -> frozenset[int]:
    return frozenset({EOS, *(i for i, letter in enumerate(LETTERS) if letter in characters)})


class ToyCache:
    def __init__(self, count: int) -> None:
        self.pages = count
        self.nbytes = count
        self.rows = np.full((count, pages.PAGE), -1, dtype=np.int32)

    parts = 1

    def read_page(self, index: int) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(self.rows[index].copy()),)

    def write_page(self, index: int, parts: tuple[torch.Tensor, ...]) -> None:
        self.rows[index, : len(parts[0])] = parts[0].numpy()

    def copy_page(self, source: int, target: int, tokens: int) -> None:
        self.rows[target, :tokens] = self.rows[source, :tokens]


class ToyRunner:
    """Counts its steps; ``fail`` makes the next one raise; ``largest`` is the most tokens a step had."""

    def __init__(self, count: int) -> None:
        self.cache = ToyCache(count)
        ops = SimpleNamespace(sample=bind("cpu").sample)
        self.model = SimpleNamespace(device=torch.device("cpu"), spec=SimpleNamespace(vocab=VOCABULARY), ops=ops, nbytes=1)
        self.steps = 0
        self.largest = 0
        self.fail: Exception | None = None
        self.ahead = False  # whether it launches steps that are read later, as a GPU does
        self.drawn: list[int] = []  # by the last step that was launched
        self.said: dict[int, list[int]] = {}  # by seat: its tokens
        self.too_many = False  # whether the first row of a launch is left to the CPU
        self.adapters = SimpleNamespace(adapters={}, mix=lambda uses: (), root=lambda mix: pages.ROOT)

    def run(self, sequences: list[Sequence]) -> torch.Tensor:
        return self.step(Step.build(sequences, self.model.device))

    def step(self, packet: Step) -> torch.Tensor:
        self.steps += 1
        self.largest = max(self.largest, len(packet.tokens))
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        batch, size = packet.batch, pages.PAGE
        starts, rows = batch.query_start.tolist(), set(packet.logit_rows.tolist())
        logits = []
        for i, length in enumerate(batch.lengths.tolist()):
            table = batch.page_table[i].tolist()
            for row in range(starts[i], starts[i + 1]):
                slot, position = int(batch.slots[row]), int(batch.positions[row])
                assert slot == table[position // size] * size + position % size
                self.cache.rows[slot // size, slot % size] = int(packet.tokens[row])
            flat = self.cache.rows[table].reshape(-1)
            for row in range(starts[i], starts[i + 1]):
                if row in rows:
                    seen = flat[: int(batch.positions[row]) + 1].tolist()
                    assert -1 not in seen, "a row was read that nobody wrote"
                    logits.append(toy_logits(seen))
            assert length == int(batch.positions[starts[i + 1] - 1]) + 1
        return torch.from_numpy(np.array(logits, dtype=np.float32).reshape(-1, VOCABULARY))

    @property
    def launches(self) -> bool:
        return self.ahead

    def launch(self, places: list[Place]) -> ToyFlight:
        """Draw from the cache alone: tokens that the host has not seen yet come from the launch before."""
        self.steps += 1
        tokens = self.drawn if places[0].token is None else [place.token for place in places]
        assert len(tokens) == len(places) and all((place.token is None) == (places[0].token is None) for place in places)
        rows = []
        for place, token in zip(places, tokens, strict=True):
            page, row = divmod(place.position, pages.PAGE)
            self.cache.rows[place.pages[page], row] = token
            seen = self.cache.rows[list(place.pages)].reshape(-1)[: place.position + 1].tolist()
            assert -1 not in seen, "a row was read that nobody wrote"
            rows.append(torch.from_numpy(toy_logits(seen)))
        result = sample(torch.stack(rows), [self._params(place, token) for place, token in zip(places, tokens, strict=True)]).tolist()
        self.drawn = [max(int(row[0]), 0) for row in result]
        if self.too_many:
            result[0][0] = TOO_MANY
        return ToyFlight(result)

    def _params(self, place: Place, token: int) -> SampleParams:
        params, tally, penalties = place.seat.params, place.seat.tally, None
        if tally is not None:
            if place.token is not None:
                self.said[id(place.seat)] = list(tally.tokens)
            else:
                self.said[id(place.seat)].append(token)
            said = self.said[id(place.seat)]
            assert len(said) == place.position + 1
            seen = Occurrences(tally.window, tally.decay).of(np.array(said, dtype=np.int64))
            penalties = Penalties(tally.repetition, tally.presence, tally.frequency, *seen)
        return params._replace(point=place.point, penalties=penalties)


@dataclass
class ToyFlight:
    result: list[list[float]]

    def read(self) -> list[list[float]]:
        return self.result


def toy_tokenizer() -> SimpleNamespace:
    def encode(text: str, *, parse_special: bool = True, add_bos: bool = False) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    return SimpleNamespace(
        eos_ids=frozenset({EOS}),
        adds_bos=False,
        encode=encode,
        decode=decode,
        size=VOCABULARY,
        texts=list(LETTERS),
        ids_with=ids_with,
        special_ids=frozenset({EOS}),
    )


def toy_generator(count: int, context: int = 1_000_000, chunk: int = 7, *, ahead: bool = False) -> Generator:
    runner = ToyRunner(count)
    runner.ahead = ahead
    return Generator(runner, toy_tokenizer(), context, chunk)  # type: ignore[arg-type]


def replied(generator: Generator, specs: list[JobSpec], gap: int) -> dict[str, Done]:
    """How each of ``specs`` ended, submitted with ``gap`` steps between them."""
    events: list[Event] = []
    for spec in specs:
        events += generator.submit(spec)
        for _ in range(gap):
            events += generator.advance()
    while generator.busy:
        events += generator.advance()
    generator.check()
    return {event.id: event for event in events if isinstance(event, Done)}


def small_pages(patch, size: int) -> None:
    """Pages of ``size`` tokens, so that short sequences cross many of them."""
    from exltui.engine.generate import generator, room
    from exltui.engine.run import tier

    for module in (generator, room, pages, step, tier):
        patch.setattr(module, "PAGE", size)


def expected(spec: JobSpec, context: int) -> tuple[list[int], str]:
    """The reply to ``spec`` and its stop reason, computed one token at a time without a cache."""
    bias = {**dict(spec.logit_bias), **dict.fromkeys(spec.banned_tokens, float("-inf"))}
    sampler = Sampler(spec.sampling, ids_with, bias=bias, allowed=spec.allowed_tokens, width=VOCABULARY)
    prompt = list(spec.prompt_ids) if spec.prompt_ids is not None else [LETTERS.index(c) for c in spec.prompt or ""]
    tokens, scale = list(prompt), spec.sampling.cfg_scale
    negative = list(spec.negative_prompt_ids or ())
    led_there: dict[int, set[int]] = {}  # position: first tokens of banned strings
    while True:
        logits = torch.from_numpy(toy_logits(tokens))[None]
        if scale != 1.0:
            other = torch.from_numpy(toy_logits(negative + tokens[len(prompt) :]))[None]
            logits = scale * logits.log_softmax(-1) + (1 - scale) * other.log_softmax(-1)
        banned = set(led_there.get(len(tokens), set()))
        if len(tokens) - len(prompt) < spec.min_new_tokens:
            banned |= {EOS, *spec.stop_token_ids}
        drawn, probability, prior = sample(logits, [sampler.params(tokens, len(tokens), None, banned)])[0].tolist()
        sampler.observe(len(tokens), probability, prior)
        token = int(drawn)
        if token == EOS or token in spec.stop_token_ids:
            return tokens[len(prompt) :], "stop_token"
        tokens.append(token)
        reply = tokens[len(prompt) :]
        hits = [at for string in spec.banned_strings if (at := decode(reply).find(string.lower())) >= 0]
        if hits:
            position = len(prompt) + min(hits)
            led_there = {at: ids for at, ids in led_there.items() if at <= position}
            led_there.setdefault(position, set()).add(tokens[position])
            del tokens[position:]
            continue
        if any(stop in decode(reply) for stop in spec.stop_strings):
            return reply, "stop_string"
        if spec.max_new_tokens is not None and len(reply) >= spec.max_new_tokens:
            return reply, "max_new_tokens"
        if max(len(tokens), len(negative) + len(reply)) >= context:
            return reply, "context_full"
