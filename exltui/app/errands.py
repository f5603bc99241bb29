"""Small jobs beside the chat, whose text nobody sees arrive: a title, a summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from exltui import protocol
from exltui.app.dialogue import Work
from exltui.app.prepare import Order, Prepared, Preparer
from exltui.chat import thinking
from exltui.chat.tree import Turn, new_id
from exltui.client import EngineLink
from exltui.errors import ExltuiError

ASIDE = protocol.Sampling(temperature=0.3)


@dataclass
class _Errand:
    then: Callable[[str], None]
    failed: Callable[[ExltuiError], None]
    text: str = ""


class Errands:
    """Asks the loaded model and hands its answer over. Nothing of it is in a chat."""

    def __init__(self, client: EngineLink, work: Work, preparer: Preparer) -> None:
        self._client, self._work, self._preparer = client, work, preparer
        self._running: dict[str, _Errand] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def ask(self, order: Order, question: str, then: Callable[[str], None], failed: Callable[[ExltuiError], None]) -> None:
        """Ask ``question`` after the turns of ``order``; ``then`` gets the answer, which may be empty."""
        asked = replace(order, turns=(*order.turns, Turn("user", question)), sampling=ASIDE, start="")
        self._run(asked, self._preparer.prepare, then, failed)

    def write_as_person(self, order: Order, then: Callable[[str], None], failed: Callable[[ExltuiError], None]) -> None:
        """Have the person's next message after the turns of ``order`` written."""
        self._run(order, self._preparer.prepare_as_person, then, failed)

    def _run(
        self,
        order: Order,
        prepare: Callable[[Order], Prepared],
        then: Callable[[str], None],
        failed: Callable[[ExltuiError], None],
    ) -> None:
        id = new_id()
        self._running[id] = _Errand(then, failed)
        asked = replace(order, job=id)
        self._work(lambda: prepare(asked), lambda prepared: self._send(id, prepared.job), lambda error: self._fail(id, error))

    def _send(self, id: str, job: protocol.JobSpec) -> None:
        if id in self._running:
            self._client.send(protocol.Submit(job))

    def _fail(self, id: str, error: ExltuiError) -> None:
        if (errand := self._running.pop(id, None)) is not None:
            errand.failed(error)

    def stop(self) -> None:
        """Give way: what runs is forgotten."""
        for id in self._running:
            self._client.send(protocol.Cancel(id))
        self._running.clear()

    def handle(self, event: protocol.Event) -> None:
        """Take an event of the engine; those of other jobs pass by."""
        if not isinstance(event, (protocol.Text, protocol.Done, protocol.Failed)) or event.id not in self._running:
            return
        errand = self._running[event.id]
        if isinstance(event, protocol.Text):
            errand.text += event.text
            return
        del self._running[event.id]
        if isinstance(event, protocol.Done):
            errand.then(thinking.answer(errand.text).strip())
        else:
            errand.failed(ExltuiError(event.error, event.hint))
