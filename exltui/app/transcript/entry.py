"""What the transcript shows: one entry is one message, one notice or one error card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["done", "streaming", "stopped", "failed", "notice", "error"]


@dataclass
class Entry:
    """One item of the conversation.

    ``role`` is user, assistant or system and chooses the colour of ``name``; ``meta`` stands at the right end of the name's line.
    ``notice`` is one quiet paragraph without a name. ``error`` is a card: ``text`` is the sentence, ``hint`` says what to do.
    A ``failed`` reply keeps its text and shows ``hint`` as a card below it. ``thought`` says how long its thoughts are.
    """

    id: str
    role: str
    name: str
    text: str
    meta: str = ""
    state: State = "done"
    hint: str = ""
    thought: str = ""
