"""The tokens of a reply with how likely they were, and what could have stood in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exltui.protocol import Scores
from exltui.tokenizer import Tokenizer

LONGEST = 2000  # tokens of a reply that are shown


@dataclass(frozen=True)
class Alternative:
    """A token that could have been drawn. ``drawn`` is its probability after the sampler; None where the sampler had cut it off."""

    text: str
    raw: float
    drawn: float | None


@dataclass(frozen=True)
class InspectedToken:
    """One token: its text, its probability to the model (``raw``) and after the sampler (``drawn``), and the likeliest ones."""

    text: str
    raw: float
    drawn: float
    alternatives: tuple[Alternative, ...]


def inspected(scores: Sequence[Scores], tokenizer: Tokenizer) -> list[InspectedToken]:
    """The tokens of a reply. Texts are what each adds to those before it, so that they join to the reply."""
    found: list[InspectedToken] = []
    ids: list[int] = []

    for score in scores[:LONGEST]:
        window = ids[-16:]  # enough for characters that are several tokens
        base = tokenizer.decode(window)

        def text(token: int, window: list[int] = window, base: str = base) -> str:
            return tokenizer.decode([*window, token]).removeprefix(base) or tokenizer.piece(token)

        drawn = dict(score.top)
        alternatives = tuple(Alternative(text(token), raw, drawn.get(token)) for token, raw in score.raw_top)
        own = text(score.token)
        ids.append(score.token)
        found.append(InspectedToken(own, score.raw_probability, score.probability, alternatives))
    return found
