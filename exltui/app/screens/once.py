"""Screens that close once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.await_complete import AwaitComplete
from textual.screen import Screen

if TYPE_CHECKING:
    Base = Screen[Any]
else:
    Base = object  # Textual takes styles and the like from the first base that is a widget


class ClosesOnce(Base):
    """A screen that a second Enter in the same packet of keys does not close again: that would take the one below with it."""

    def dismiss(self, result: Any = None) -> AwaitComplete:
        return super().dismiss(result) if self.is_active else AwaitComplete.nothing()
