"""The context of a chat: what of it goes to the model, and what its template makes of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from textual.content import Content
from textual.timer import Timer

from exltui.app import figures
from exltui.app.doctor import examine
from exltui.app.prepare import Order
from exltui.app.screens.context import ContextScreen
from exltui.app.screens.pick import Choice, PickScreen
from exltui.app.screens.sheet import SheetScreen
from exltui.chat.budget import Budget
from exltui.chat.formats import FORMATS
from exltui.chat.tree import Turn
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

QUIET = 0.6  # seconds without a key before the budget is counted anew
SUMMARY_TOKENS = 300
SUMMARY = (
    "Summarise the conversation so far for somebody who has to go on with it: facts, decisions, names, open questions. "
    "At most 200 words, no introduction."
)
OPTIONS = {"thinking": ("on", "off", "auto"), "thoughts": ("keep", "strip")}


class ContextDesk:
    """Counts the budget beside the screen when the keys are quiet, and shows it."""

    def __init__(self, app: ExltuiApp) -> None:
        self._app = app
        self.budget: Budget | None = None
        self._timer: Timer | None = None
        self._counting = self._again = False

    def order(self, draft: str = "") -> Order | None:
        """What the chat on the screen makes of a prompt; None without a model."""
        loaded, dialogue = self._app.observed.loaded, self._app.dialogue
        if loaded is None:
            return None
        order = dialogue.order(dialogue.conversation, dialogue.conversation.head, loaded)
        if not draft.strip():
            return order
        return dataclasses.replace(order, turns=(*order.turns, Turn("user", draft)))

    # ── the budget ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def changed(self) -> None:
        """The chat or the prompt is another one: count when the keys are quiet."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self._app.set_timer(QUIET, self.count)

    def count(self) -> None:
        """Count the budget of the chat with what is typed."""
        if self._counting:
            self._again = True
            return
        if self._app.dialogue.writing is not None or not self._app.main.query("#prompt"):
            return
        draft = "" if self._app.dialogue.revision.what else self._app.main.prompt.full_text
        order = self.order(draft)
        path = tuple(self._app.dialogue.conversation.path())
        if order is None or not order.turns:
            self._take(None)
            return
        self._counting = True
        self._app.work_aside(lambda: self._app.preparer.budget(order, path, draft), self._take, lambda error: self._take(None))

    def _take(self, budget: Budget | None) -> None:
        self._counting = False
        self.budget = budget
        self._app.main.conversation.show_budget(budget_line(budget))
        screen = self._app.screen
        if isinstance(screen, ContextScreen) and screen.query("#context-list"):  # it counts again once it has it
            screen.show(budget)
        if self._again:
            self._again = False
            self.count()

    def open(self) -> None:
        """The budget by message."""
        if isinstance(self._app.screen, ContextScreen):
            self._app.screen.dismiss()
            return
        if self._app.observed.loaded is None:
            self._app.tell("No model is loaded.", "Only a model can say how many tokens a text is.")
            return
        self._app.to_main()
        self._app.push_screen(ContextScreen(self._app))

    # ── what is in it ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def summarise(self) -> None:
        """Have all but the last turn summarised into the note, and drop them from what is sent."""
        conversation = self._app.dialogue.conversation
        order = self.order()
        path = conversation.path()
        last = max((place for place, message in enumerate(path) if message.role == "user"), default=0)
        old = [message for message in path[:last] if not message.pinned and not message.dropped]
        if order is None or not old or not self._app.dialogue.may_change():
            self._app.tell("There is nothing to summarise yet." if order is not None else "No model is loaded.")
            return
        ids = {message.id for message in old}
        turns = tuple(turn for turn in order.turns if turn.role == "system" or turn.id in ids)

        def done(text: str) -> None:
            if not text:
                self._app.tell("The model wrote no summary; nothing was changed.", error=True)
                return
            if self._app.dialogue.conversation is not conversation:
                return
            self._app.dialogue.revision.set_option("note", f"Summary of the earlier conversation: {text}")
            for message in old:
                self._app.dialogue.revision.mark(message.id, dropped=True)
            self._app.tell(
                f"{len(old)} messages are in the note now and are not sent any more.", "/note shows it, x on a message takes it in."
            )
            self.changed()

        self._app.tell("The model writes a summary.")
        asked = dataclasses.replace(order, turns=turns, max_new_tokens=SUMMARY_TOKENS)
        self._app.errands.ask(asked, SUMMARY, done, self._app.fail)

    def option(self, name: str, value: str) -> None:
        """Set one of the chat's options, or the next of its values."""
        values = OPTIONS[name]
        now = self._app.dialogue.conversation.options.get(name, values[-1])
        value = value or values[(values.index(now) + 1) % len(values)]
        if value not in values:
            self._app.tell(f"{name}: {one_line(value, 40)} is none of {', '.join(values)}.", error=True)
            return
        self._app.dialogue.revision.set_option(name, "" if value == values[-1] else value)
        self._app.tell(f"{name}: {value}")
        self.changed()

    def choose_format(self, name: str) -> None:
        """Another prompt format, by name."""

        def take(chosen: str | None) -> None:
            if chosen is None:
                return
            if chosen and chosen not in FORMATS:
                self._app.tell(f"There is no prompt format {one_line(chosen, 40)}.", f"There are {', '.join(FORMATS)}.", error=True)
                return
            self._app.dialogue.revision.set_option("format", chosen)
            self._app.tell(f"Prompt format: {chosen or 'the model’s own'}")
            self.changed()

        if name:
            take("" if name == "own" else name)
            return
        now = self._app.dialogue.conversation.options.get("format", "")
        choices = [Choice("", "the model's own template", mark="●" * (not now))]
        choices += [Choice(form.name, form.name, form.mark, "●" * (form.name == now)) for form in FORMATS.values()]
        self._app.push_screen(PickScreen("Prompt format", choices, at=now), take)

    def doctor(self) -> None:
        """The exact prompt, its tokens, and what is wrong with it."""
        order = self.order(self._app.main.prompt.full_text)
        if order is None:
            self._app.tell("No model is loaded.")
            return
        if not order.turns:
            order = dataclasses.replace(order, turns=(Turn("user", "Hello"),))
        asked = order

        def show(text: Content) -> None:
            self._app.push_screen(SheetScreen("Template doctor", text))

        self._app.work_aside(lambda: examine(*self._app.preparer.doctor(asked)), show, self._app.fail)


def budget_line(budget: Budget | None) -> tuple[str, bool]:
    """The budget in a few words, and whether it is a warning."""
    if budget is None:
        return "", False
    if budget.problem:
        return "too long for the context · F6 shows", True
    text = f"{figures.count(budget.prompt_tokens)} of {figures.count(budget.context)} tokens"
    if budget.cut:
        return f"{text} · {budget.cut} oldest message{'s' * (budget.cut > 1)} will not be sent · F6 shows", True
    return text, False
