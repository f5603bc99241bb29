"""The context by message: how many tokens each takes, and whether it goes to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from exltui.app import figures
from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.bar import bar, segments, spread
from exltui.chat.budget import Budget, Share
from exltui.text import one_line

if TYPE_CHECKING:
    from exltui.app.app import ExltuiApp

FATES = {
    "sent": ("  ", ""),
    "pinned": ("▪ ", "$accent"),
    "cut": ("✂ ", "$warning"),
    "dropped": ("– ", "$text-disabled"),
}
COLOURS = {"system": "$secondary", "user": "$accent", "assistant": "$primary"}
BAR = 12  # cells of a message's own bar


class ContextScreen(ClosesOnce, ModalScreen[None]):
    """Pin, drop, summarise; what is shown is what the next message would be sent with."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f6", "dismiss", "Close", id="context.close"),
        Binding("p", "mark('pinned')", "Pin: it is always sent", id="context.pin"),
        Binding("x,d", "mark('dropped')", "Do not send", id="context.drop"),
        Binding("s", "summarise", "Summarise the older messages into the note", id="context.summarise"),
        Binding("n", "note", "Change the note", id="context.note"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
    ]

    def __init__(self, app: ExltuiApp) -> None:
        super().__init__()
        self._owner = app
        self._shares: tuple[Share, ...] = ()

    def compose(self) -> ComposeResult:
        with Vertical(id="context") as frame:
            frame.border_title = "Context"
            frame.border_subtitle = "P pin · X do not send · S summarise · N note · Esc close"
            yield Static("Counting", id="context-sum")
            yield OptionList(id="context-list", compact=True)

    def on_mount(self) -> None:
        self._owner.context.count()

    @property
    def _list(self) -> OptionList:
        return self.query_one("#context-list", OptionList)

    def show(self, budget: Budget | None) -> None:
        """Show what was counted."""
        width = max(20, self._list.size.width - 2)
        summary = self.query_one("#context-sum", Static)
        at = self._list.highlighted
        self._list.clear_options()
        self._shares = budget.shares if budget is not None else ()
        if budget is None:
            summary.update(Content.styled("There is nothing to send yet.", "$text-muted"))
            return
        summary.update(Content("\n").join(budget_lines(budget, width)))
        most = max((share.tokens for share in budget.shares), default=1)
        self._list.add_options([Option(share_line(share, most, width)) for share in budget.shares])
        if self._shares:
            self._list.highlighted = min(at if at is not None else len(self._shares) - 1, len(self._shares) - 1)

    def action_move(self, step: int) -> None:
        self._list.action_cursor_down() if step > 0 else self._list.action_cursor_up()

    def action_mark(self, what: str) -> None:
        index = self._list.highlighted
        share = self._shares[index] if index is not None and index < len(self._shares) else None
        if share is None or share.id is None:
            self._owner.tell("Only messages that were sent can be pinned or left out.")
            return
        already = share.fate == what or (what == "pinned" and self._owner.dialogue.conversation[share.id].pinned)
        self._owner.dialogue.revision.mark(share.id, **({} if already else {what: True}))
        self._owner.context.count()

    def action_summarise(self) -> None:
        self._owner.context.summarise()

    def action_note(self) -> None:
        self.dismiss()
        self._owner.messages.note()


def budget_lines(budget: Budget, width: int) -> list[Content]:
    """The whole context as one bar, its numbers, and what is wrong."""
    sent = [share for share in budget.shares if share.fate in ("sent", "pinned")]
    parts = [(share.tokens / budget.context, COLOURS.get(share.role, "$primary")) for share in sent]
    parts.append((budget.marks / budget.context, "$text-muted"))
    numbers = f"{figures.count(budget.prompt_tokens)} of {figures.count(budget.context)} tokens"
    rest = f"template {figures.count(budget.marks)} · kept for the reply {figures.count(budget.reserve)}"
    lines = [segments(parts, width), spread(Content.styled(numbers, "bold"), Content.styled(rest, "$text-muted"), width)]
    if budget.problem:
        lines.append(Content.styled(budget.problem, "$error"))
    elif budget.cut:
        text = f"{budget.cut} of the oldest messages ({FATES['cut'][0].strip()}) do not fit and will not be sent."
        lines.append(Content.styled(text, "$warning"))
    return [*lines, Content("")]


def share_line(share: Share, most: int, width: int) -> Content:
    """One message: its fate, its first words, its tokens."""
    sign, style = FATES[share.fate]
    who = {"user": "you", "assistant": "reply"}.get(share.role, share.role)
    left = Content.assemble((sign, style), (f"{who:<7}", COLOURS.get(share.role, "")), (one_line(share.text[:400], 200), style))
    right = Content.assemble(f" {figures.count(share.tokens):>7} ", bar(share.tokens / most, BAR, COLOURS.get(share.role, "$primary")))
    return spread(left, right, width)
