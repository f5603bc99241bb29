"""The prompt box: several lines, history, and pastes of any size."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message
from textual.widgets import TextArea


class PromptBox(TextArea):
    """Where a message is written. Enter sends; Ctrl+J, Shift+Enter and Alt+Enter make a new line."""

    @dataclass
    class Submitted(Message):
        """Somebody sent ``text`` (long pastes put back in). The box is empty again."""

        text: str

    def set_history(self, texts: list[str]) -> None:
        """What Up and Down walk through, oldest first."""

    def put(self, text: str) -> None:
        """Replace what is in the box, with the cursor at the end."""
        self.text = text

    @property
    def full_text(self) -> str:
        """What would be sent: the text with long pastes put back in."""
        return self.text
