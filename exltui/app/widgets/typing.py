"""Typing in order, however fast the keys come."""

from __future__ import annotations

from textual import events
from textual.app import App
from textual.widgets import Input


class KeysInOrder:
    """A text widget that does a key's action before it looks at the next key.

    Textual puts a letter in as soon as the widget sees it, but does what Backspace or an arrow is bound to only after the key has gone up
    to the app. Keys that come in one packet, as they do on a slow line, would change places.
    """

    app: App[object]

    async def _on_key(self, event: events.Key) -> None:
        if not event.is_printable and await self.app._check_bindings(event.key):
            event.stop()
            event.prevent_default()


class LineInput(KeysInOrder, Input):
    """One line to type in."""
