"""Screens that close once, and know whether they still are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual import events
from textual.await_complete import AwaitComplete
from textual.screen import Screen

if TYPE_CHECKING:
    Base = Screen[Any]
else:
    Base = object  # Textual takes styles and the like from the first base that is a widget


class ClosesOnce(Base):
    """A screen that a second Enter in the same packet of keys does not close again: that would take the one below with it."""

    @property
    def is_there(self) -> bool:
        """Whether it can be drawn: its parts are there, and it is not closed. Answers also come to a screen that was closed meanwhile."""
        return self.is_mounted and self in self.app.screen_stack

    async def on_event(self, event: events.Event) -> None:
        """One that was closed before it had its parts has nothing to begin with."""
        if self in self.app.screen_stack or not isinstance(event, events.Mount):
            await super().on_event(event)

    def dismiss(self, result: Any = None) -> AwaitComplete:
        return super().dismiss(result) if self.is_active else AwaitComplete.nothing()
