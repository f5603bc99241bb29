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
    said: str
    raw: float


@dataclass(frozen=True)
class InspectedToken:
    """One token: where it stands, how it is shown, what of it is in the reply ("" of a special one), its probability to the model and
    after the sampler (``drawn``), and the likeliest ones.
    """

    job: str
    position: int
    token: int
    text: str
    said: str
    raw: float
    drawn: float
    alternatives: tuple[Alternative, ...]


class InspectedReply:
    """The tokens of a reply. What each says is what it adds to those before it, so that together they are the reply."""

    def __init__(self, scores: Sequence[Scores], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = [score.token for score in scores[-LONGEST:]]
        self.tokens = [self._inspected(place, score) for place, score in enumerate(scores[-LONGEST:])]

    def text(self, place: int, token: int) -> str:
        """How ``token`` would be shown at ``place`` (0: the first that is shown)."""
        return self._texts(place, [token])[0][0]

    def until(self, place: int, reply: str) -> str:
        """What of the text ``reply`` stands before the token at ``place``: what it was begun with, and the tokens before that one.

        A reply may end before its last tokens do, where a stop string was cut off.
        """
        said = "".join(token.said for token in self.tokens)
        kept = next(count for count in range(len(said), -1, -1) if reply.endswith(said[:count]))
        return reply[: len(reply) - kept] + "".join(token.said for token in self.tokens[:place])

    def _texts(self, place: int, tokens: Sequence[int]) -> list[tuple[str, str]]:
        """How each of ``tokens`` would be shown at ``place``, and what of it would be in the reply."""
        window = self._ids[max(0, place - WINDOW) : place]
        base = self._tokenizer.decode(window)
        said = [self._tokenizer.decode([*window, token]).removeprefix(base) for token in tokens]
        return [(text or self._tokenizer.piece(token), text) for token, text in zip(tokens, said, strict=True)]

    def _inspected(self, place: int, score: Scores) -> InspectedToken:
        (own, *others) = self._texts(place, [score.token, *(token for token, _ in score.raw_top)])
        alternatives = tuple(Alternative(token, *text, raw) for text, (token, raw) in zip(others, score.raw_top, strict=True))
        return InspectedToken(score.id, score.position, score.token, *own, score.raw_probability, score.probability, alternatives)
