"""The command palette: every action of the app, with its keys and its slash command."""

from __future__ import annotations

from functools import partial

from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider

from exltui.app.actions import ALL
from exltui.app.keys import Action, keys_name
from exltui.app.screens.once import ClosesOnce


class Actions(Provider):
    """Offers ``actions.ALL``."""

    async def discover(self) -> Hits:
        for action in self._actions():
            yield DiscoveryHit(_title(action), partial(self.app.run_action, f"app.do('{action.id}')"), help=action.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in self._actions():
            score = max(matcher.match(action.label), 0.8 * matcher.match(action.help))
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(_title(action)),
                    partial(self.app.run_action, f"app.do('{action.id}')"),
                    text=action.label,
                    help=action.help,
                )

    @staticmethod
    def _actions() -> list[Action]:
        return [action for action in ALL if action.palette]


def _title(action: Action) -> str:
    ways = ", ".join(part for part in (keys_name(action.keys), f"/{action.command}" if action.slash else "") if part)
    return f"{action.label}  ({ways})" if ways else action.label


class Palette(ClosesOnce, CommandPalette):
    """Textual's, without the id that it gives all of them: the next one can be opened while the last is still being closed."""
