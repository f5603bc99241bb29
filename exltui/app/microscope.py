"""Looking at a reply's tokens: how likely they were, what else could have been said, and what the sampler made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exltui.app.inspect import InspectedReply
from exltui.app.screens.inspect import InspectScreen
from exltui.app.screens.microscope import Ask, MicroscopeScreen
from exltui.chat.tree import new_id
from exltui.protocol import Explain, Explained, Inspect, Inspected, QueryFailed, Sampling, Scores

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp


class MicroscopeDesk:
    """Asks the engine about the logits that it kept, and shows them."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app

    def inspect(self, id: str) -> None:
        """The tokens of the reply ``id``."""
        dialogue = self._app.dialogue
        message = dialogue.conversation[id]
        jobs = dialogue.jobs.get(id, [])
        if message.role != "assistant":
            self._app.tell("Only a reply can be inspected.")
        elif not jobs or self._app.observed.loaded is None:
            dialogue.keeping = True
            self._app.tell("The logits of replies are kept from now on.", "R writes this one again.")
        else:
            self._collect(id, list(jobs), [])

    def _collect(self, id: str, jobs: list[str], scores: list[Scores]) -> None:
        """Ask for one job after the other: a reply that was continued has several."""
        if not jobs:
            self._collected(id, scores)
            return

        def take(answer: Inspected) -> None:
            self._collect(id, jobs[1:], [*scores, *answer.scores])

        def pass_by(failed: QueryFailed) -> None:
            if len(jobs) == 1 and not scores:
                self._app.tell(f"{failed.error[:1].upper()}{failed.error[1:]}.", "R writes this one again.")
            else:
                self._collect(id, jobs[1:], scores)

        self._app.queries.ask(Inspect(new_id(), jobs[0]), take, pass_by)

    def _collected(self, id: str, scores: list[Scores]) -> None:
        dialogue, loaded = self._app.dialogue, self._app.observed.loaded
        if loaded is None or id not in dialogue.conversation or not scores:
            return
        order = dialogue.order(dialogue.conversation, id, loaded)

        def show(reply: InspectedReply) -> None:
            screen = InspectScreen(reply, self._asker(reply), lambda place: self.look(id, reply, place))
            self._app.push_screen(screen, lambda chosen: self._branch(id, reply, chosen))

        self._app.work_aside(lambda: InspectedReply(scores, self._app.preparer.tokenizer(order)), show, self._app.fail)

    def _asker(self, reply: InspectedReply) -> Ask:
        def ask(place: int, sampling: Sampling | None, then: Callable[[Explained], None], failed: Callable[[QueryFailed], None]) -> None:
            token = reply.tokens[place]
            self._app.queries.ask(Explain(new_id(), token.job, token.position, sampling), then, failed)

        return ask

    def look(self, id: str, reply: InspectedReply, place: int) -> None:
        """The microscope on one token, with the settings that it was drawn with."""
        sampling = self._app.dialogue.conversation[id].sampling or self._app.dialogue.sampling

        def take(chosen: Sampling | None) -> None:
            if chosen is not None:
                self._app.main.sampler.take(chosen)
                self._app.tell("The next reply is drawn with these settings.")

        self._app.push_screen(MicroscopeScreen(reply, place, sampling, self._asker(reply)), take)

    def _branch(self, id: str, reply: InspectedReply, chosen: tuple[int, str] | None) -> None:
        """Another version of the reply, with another token at one place."""
        dialogue = self._app.dialogue
        if chosen is None or id not in dialogue.conversation or not dialogue.may_change():
            return
        dialogue.start = reply.until(chosen[0], dialogue.conversation[id].text) + chosen[1]
        dialogue.regenerate(id)
