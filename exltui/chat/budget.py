"""What of a chat goes to the model, message by message, in tokens: shown before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from exltui.chat import thinking
from exltui.chat.tree import Message

Fate = Literal["sent", "pinned", "cut", "dropped"]


@dataclass(frozen=True, slots=True)
class Share:
    """One message's part of the context. ``id`` is None for the system prompt (with the note) and for what is typed and not sent."""

    id: str | None
    role: str
    text: str
    tokens: int
    fate: Fate


@dataclass(frozen=True, slots=True)
class Budget:
    """All shares, and the whole prompt, which has the template's marks besides. ``problem`` says why it cannot be sent, or is ""."""

    shares: tuple[Share, ...]
    prompt_tokens: int
    context: int
    reserve: int  # tokens kept free for the reply
    problem: str = ""

    @property
    def cut(self) -> int:
        """How many messages do not fit."""
        return sum(share.fate == "cut" for share in self.shares)

    @property
    def marks(self) -> int:
        """Tokens of the template itself."""
        return max(0, self.prompt_tokens - sum(share.tokens for share in self.shares if share.fate in ("sent", "pinned")))


def shares(
    system: str, path: Sequence[Message], draft: str, cut: Collection[str], count: Callable[[str], int], *, keep_thoughts: bool
) -> tuple[Share, ...]:
    """The parts of a prompt; ``cut`` are the ids of messages that do not fit, ``draft`` is what is typed."""
    found = [Share(None, "system", system, count(system), "sent")] if system else []
    for message in path:
        text = message.text if keep_thoughts or message.role != "assistant" else thinking.answer(message.text)
        fate: Fate = "dropped" if message.dropped else "cut" if message.id in cut else "pinned" if message.pinned else "sent"
        if text:
            found.append(Share(message.id, message.role, text, count(text), fate))
    if draft.strip():
        found.append(Share(None, "user", draft, count(draft), "sent"))
    return tuple(found)
