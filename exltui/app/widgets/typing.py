"""Typing in order, however fast the keys come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import events
from textual.widget import Widget
from textual.widgets import Input

if TYPE_CHECKING:
    Base = Widget
else:
    Base = object  # Textual takes styles and the like from the first base that is a widget


class KeysInOrder(Base):
    """A text widget that does a key's action before it looks at the next key.

    Textual puts a letter in as soon as the widget sees it, but does what Backspace or an arrow is bound to only after the key has gone up
    to the app. Keys that come in one packet, as they do on a slow line, would change places.
    """

    async def _on_key(self, event: events.Key) -> None:
        for binding in self._bindings.key_to_bindings.get(event.key, ()):
            if not event.is_printable and binding.action != "submit" and await self.app.run_action(binding.action, self):
                event.stop()
                event.prevent_default()
                return


class LineInput(KeysInOrder, Input):
    """One line to type in."""
