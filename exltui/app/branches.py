"""What of each branch of a chat the engine still has in its cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from exltui.app.prepare import Order
from exltui.chat.tree import Conversation, new_id
from exltui.errors import ExltuiError
from exltui.protocol import Peek, Peeked

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

MOST = 40  # branches that are asked about, the newest ones

Cached = dict[str, tuple[int, int]]


class BranchDesk:
    """Makes the prompt of each branch and asks the engine about it."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app

    def cached(self, conversation: Conversation, then: Callable[[Cached], None]) -> None:
        """``then`` gets, by the last message of each branch, (tokens in the cache, tokens that the next message would be sent with)."""
        loaded = self._app.observed.loaded
        if loaded is None or self._app.observed.loading is not None:  # a load answers nothing until it has ended
            then({})
            return
        leaves = conversation.leaves()[-MOST:]
        orders = {leaf: self._app.dialogue.order(conversation, leaf, loaded) for leaf in leaves}

        def ask(prompts: dict[str, tuple[int, ...]]) -> None:
            def take(answer: Peeked) -> None:
                then({leaf: (count, len(prompts[leaf])) for leaf, count in zip(prompts, answer.cached, strict=True)})

            self._app.queries.ask(Peek(new_id(), tuple(prompts.values())), take, lambda _: then({}))

        self._app.work_aside(lambda: self._prompts(orders), ask, lambda _: then({}))

    def _prompts(self, orders: dict[str, Order]) -> dict[str, tuple[int, ...]]:
        """The tokens of each branch; a branch that makes no prompt is left out."""
        found: dict[str, tuple[int, ...]] = {}
        for leaf, order in orders.items():
            with contextlib.suppress(ExltuiError):
                found[leaf] = self._app.preparer.tokens(order)
        return found
