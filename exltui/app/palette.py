"""The command palette: every action of the app, with its keys."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from exltui.app.keys import APP_ACTIONS, Action, keys_name


class Actions(Provider):
    """Offers ``keys.APP_ACTIONS``."""

    async def discover(self) -> Hits:
        for action in self._actions():
            yield DiscoveryHit(_title(action), partial(self.app.run_action, action.action), help=action.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in self._actions():
            score = max(matcher.match(action.label), 0.8 * matcher.match(action.help))
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(_title(action)),
                    partial(self.app.run_action, action.action),
                    text=action.label,
                    help=action.help,
                )

    @staticmethod
    def _actions() -> list[Action]:
        return [action for action in APP_ACTIONS if action.palette]


def _title(action: Action) -> str:
    return f"{action.label}  ({keys_name(action.keys)})" if action.keys else action.label
