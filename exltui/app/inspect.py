"""The tokens of a reply with how likely they were, and what could have stood in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exltui.protocol import Scores
from exltui.tokenizer import Tokenizer

LONGEST = 2000  # tokens of a reply that are shown
WINDOW = 16  # tokens before another one that are decoded with it: enough for characters that are several tokens


@dataclass(frozen=True)
class Alternative:
    """A token that could have been drawn, with its probability to the model."""

    token: int
    text: str
    raw: float


@dataclass(frozen=True)
class InspectedToken:
    """One token: where it stands, its text, its probability to the model and after the sampler (``drawn``), and the likeliest ones."""

    job: str
    position: int
    token: int
    text: str
    raw: float
    drawn: float
    alternatives: tuple[Alternative, ...]


class InspectedReply:
    """The tokens of a reply. Texts are what each adds to those before it, so that they join to the reply."""

    def __init__(self, scores: Sequence[Scores], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = [score.token for score in scores[-LONGEST:]]
        self.tokens = [self._inspected(place, score) for place, score in enumerate(scores[-LONGEST:])]

    def text(self, place: int, token: int) -> str:
        """What ``token`` would add at ``place`` (0: the first that is shown)."""
        window = self._ids[max(0, place - WINDOW) : place]
        base = self._tokenizer.decode(window)
        return self._tokenizer.decode([*window, token]).removeprefix(base) or self._tokenizer.piece(token)

    def _inspected(self, place: int, score: Scores) -> InspectedToken:
        alternatives = tuple(Alternative(token, self.text(place, token), raw) for token, raw in score.raw_top)
        text = self.text(place, score.token)
        return InspectedToken(score.id, score.position, score.token, text, score.raw_probability, score.probability, alternatives)
