"""One job: its sequence, its sampler, its streamer, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from exltui.engine.generate.constraint import Constraint
from exltui.engine.generate.drafts import Automaton, Pace
from exltui.engine.generate.guard import Guard, Match
from exltui.engine.generate.room import Track
from exltui.engine.generate.sampling import Sampler, bits
from exltui.engine.generate.stream import TextStreamer
from exltui.protocol import JobSpec, Stats

LOOP_INTERVAL = 16  # tokens between two looks for a loop


@dataclass(slots=True, eq=False)
class Job:
    """From submission to end the same object. When it has to give its pages up for a while, the sampler draws by position and the streamer
    keeps its text, so nobody can tell.
    """

    spec: JobSpec
    prompt_tokens: int
    track: Track
    limit: int  # tokens that prompt and reply may have together
    stop_ids: frozenset[int]
    sampler: Sampler
    streamer: TextStreamer
    mix: tuple[tuple[int, float], ...] = ()  # (slot, scale) of its adapters
    arrival: int = 0
    guide: Track | None = None  # the negative prompt and the same reply
    guard: Guard | None = None
    constraint: Constraint | None = None
    healing: tuple[str, frozenset[int]] | None = None  # the text of the prompt's last token, and the ids whose text begins with it
    drafts: list[int] = field(default_factory=list)  # what may come next, to be verified in the next step
    pace: Pace = field(default_factory=Pace)
    automaton: Automaton | None = None  # of its tokens, for n-gram drafts
    drafted: int = 0  # tokens that a draft model has read
    banned_at: dict[int, set[int]] = field(default_factory=dict)  # position: ids that led to a banned string there
    host_draws: bool = False  # its distribution is too flat for the GPU's sampler
    skipped: int = 0  # jobs behind it that were admitted before it
    cached: int = 0
    cached_pages: int = 0
    read: int = 0  # the most prompt tokens that were ever in the cache
    accepted_drafts: int = 0
    rejected_drafts: int = 0
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first_token: float = 0.0
    stop_reason: str = ""
    stop_token: int | None = None
    tracks: list[Track] = field(init=False)
    _strip: str = ""  # what healing wrote of the prompt's own text and is still to be cut off

    def __post_init__(self) -> None:
        self.tracks = [self.track] if self.guide is None else [self.track, self.guide]

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def tokens(self) -> list[int]:
        return self.track.tokens

    @property
    def reading(self) -> bool:
        return self.track.reading or (self.guide is not None and self.guide.reading)

    @property
    def may_draft(self) -> bool:
        """Whether guesses can be verified: a grammar, guidance and a sampler that learns from each draw go one token at a time."""
        return self.spec.draft and self.guide is None and self.constraint is None and not self.sampler.observes and not self.reading

    @property
    def steady(self) -> bool:
        """Whether its draws from here on need nothing that the host makes of the ones before, but the tokens."""
        spec, new = self.spec, len(self.tokens) - self.prompt_tokens
        watched = (
            spec.scores
            or spec.top_tokens
            or spec.logits
            or spec.keep
            or self.guide
            or self.guard
            or self.constraint
            or self.mix
            or self.host_draws
        )
        return not watched and not self.reading and new >= max(spec.min_new_tokens, 1)

    def verified(self, held: int) -> None:
        """The first ``held`` of its drafts were what was drawn."""
        self.pace.verified(len(self.drafts), held)
        self.accepted_drafts += held
        self.rejected_drafts += len(self.drafts) - held
        self.drafts = []

    def ends_with(self, count: int) -> bool:
        """Whether ``count`` more tokens, whatever they are, are its last."""
        most = self.spec.max_new_tokens
        return len(self.tokens) + count >= self.limit or (most is not None and len(self.tokens) + count >= self.prompt_tokens + most)

    @property
    def new_ids(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    def params_mask(self) -> Tensor | None:
        """What a grammar and token healing allow at the next place."""
        mask = self.constraint.mask() if self.constraint else None
        if self.healing is not None and len(self.tokens) == self.prompt_tokens:
            healed = bits(self.healing[1], self.sampler.width)
            mask = healed if mask is None else mask & healed
        return mask

    def banned(self, position: int) -> set[int]:
        """Ids that must not be drawn at ``position``: the end before ``min_new_tokens``, and what led to a banned string."""
        found = self.banned_at.get(position, set())
        return found | self.stop_ids if position - self.prompt_tokens < self.spec.min_new_tokens else found

    def accept(self, token: int) -> tuple[str, int, Match | None]:
        """Take the token that was drawn -> text that is out now, of how many tokens, and a banned string that is to be taken back.

        Sets ``stop_reason`` when the job is over.
        """
        if not self.first_token:
            self.first_token = time.perf_counter()
        if token in self.stop_ids:
            self.stop_reason, self.stop_token = "stop_token", token
            return (*self.finish(), None)
        if self.healing is not None and len(self.tokens) == self.prompt_tokens:
            self._strip = self.healing[0]
        for track in self.tracks:
            track.tokens.append(token)
        if self.constraint:
            self.constraint.accept(token)
        state = self.streamer.state if self.guard else None
        text, count, match = self._unstripped(self.streamer.read(token)), 1, None
        if self.guard:
            text, count, match = self.guard.push(token, text, state)
            if match is None and self.streamer.stops_in(text + self.guard.text):
                kept, more = self.guard.finish()  # what comes behind a stop string does not matter
                text, count = text + kept, count + more
        text = self.streamer.release(text)
        if match is None:
            self.stop_reason = self._over()
        if self.stop_reason:
            rest, held = self.finish()
            return text + rest, count + held, None
        return text, count, match

    def _unstripped(self, text: str) -> str:
        """``text`` without the part of the prompt's own that healing wrote once more."""
        if self._strip:
            cut = min(len(self._strip), len(text))
            self._strip, text = self._strip[cut:], text[cut:]
        return text

    def _over(self) -> str:
        """Why the job is over, or ""."""
        new = len(self.tokens) - self.prompt_tokens
        if self.streamer.stop is not None:
            return "stop_string"
        if self.spec.max_new_tokens is not None and new >= self.spec.max_new_tokens:
            return "max_new_tokens"
        if any(len(track.tokens) >= self.limit for track in self.tracks):
            return "context_full"
        if self.constraint and self.constraint.finished:
            return "grammar_end"
        if self.spec.loop_window and new >= self.spec.loop_window and new % LOOP_INTERVAL == 0:
            window = self.tokens[-self.spec.loop_window :]
            if period(window) * self.spec.loop_repeats <= len(window):
                return "loop_detected"
        return ""

    def finish(self) -> tuple[str, int]:
        """The text that was kept back, and of how many tokens. A stop string within it still counts."""
        kept, count = self.guard.finish() if self.guard else ("", 0)
        text = self.streamer.finish(kept)
        if self.streamer.stop is not None and self.stop_reason != "cancelled":
            self.stop_reason, self.stop_token = "stop_string", None
        return text, count

    def take_back(self, match: Match) -> list[int]:
        """Go back to before a banned string -> the ids that are gone. The first of them cannot come there again."""
        position = len(self.tokens) - match.tokens
        gone = self.tokens[position:]
        self.banned_at = {at: ids for at, ids in self.banned_at.items() if at <= position}
        self.banned_at.setdefault(position, set()).add(match.first)
        for track in self.tracks:
            del track.tokens[len(track.tokens) - match.tokens :]
            track.computed = min(track.computed, len(track.tokens))
        if self.constraint:
            self.constraint.take_back(match.tokens)
        self.streamer.state = match.state
        return gone

    def stats(self) -> Stats:
        now = time.perf_counter()
        first = self.first_token or now
        return Stats(
            stop_reason=self.stop_reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached,
            new_tokens=len(self.tokens) - self.prompt_tokens,
            prefill_seconds=first - self.started if self.started else 0.0,
            decode_seconds=now - first,
            seed=self.sampler.seed,
            queued_seconds=(self.started or now) - self.submitted,
            cached_pages=self.cached_pages,
            accepted_drafts=self.accepted_drafts,
            rejected_drafts=self.rejected_drafts,
            stop_token=self.stop_token,
            stop_string=self.streamer.stop,
        )


def period(tokens: Sequence[int]) -> int:
    """The smallest p with ``tokens[i] == tokens[i - p]`` for all i: the length of what repeats (by Knuth, Morris, Pratt)."""
    border = [0] * len(tokens)
    k = 0
    for i in range(1, len(tokens)):
        while k and tokens[i] != tokens[k]:
            k = border[k - 1]
        k += tokens[i] == tokens[k]
        border[i] = k
    return len(tokens) - (border[-1] if tokens else 0)
