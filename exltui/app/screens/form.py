"""Settings as a form: one line each, changed in place, with a line of help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.bar import spread
from exltui.app.widgets.typing import LineInput
from exltui.errors import ExltuiError
from exltui.text import one_line


@dataclass(frozen=True)
class Row:
    """One line of a form. ``choices`` are walked through with left and right; without them the value is typed.

    ``parse`` makes the value of a typed text, or raises ExltuiError. ``show`` is how a value is written.
    """

    key: str
    label: str
    help: str
    group: str = ""
    choices: tuple[Any, ...] = ()
    parse: Callable[[str], Any] = str
    show: Callable[[Any], str] = lambda value: "" if value is None else str(value)
    typed: Callable[[Any], str] | None = None  # how a value stands in the line where it is changed; None: as it is shown


class FormScreen(ClosesOnce, ModalScreen[dict[str, Any] | None]):
    """Tells ``changed`` of every value as it changes. The result is all values when ``Enter`` on the last line was pressed, else None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="form.close"),
        Binding("left,h", "step(-1)", "Value before", id="form.less"),
        Binding("right,l,space", "step(1)", "Next value", id="form.more"),
        Binding("delete,backspace", "clear", "Back to the default", id="form.default"),
        Binding("j", "move(1)", "Down", show=False),
        Binding("k", "move(-1)", "Up", show=False),
    ]

    def __init__(
        self,
        title: str,
        rows: Sequence[Row],
        values: dict[str, Any],
        defaults: dict[str, Any],
        *,
        changed: Callable[[str, Any], None] = lambda key, value: None,
        about: Callable[[dict[str, Any]], list[Content]] = lambda values: [],
        done: str = "",
    ) -> None:
        super().__init__()
        self._title, self._rows, self._changed, self._about, self._done = title, list(rows), changed, about, done
        self.values, self._defaults = dict(values), defaults
        self._lines: list[Row | None] = []
        self._editing: Row | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="form") as frame:
            frame.border_title = self._title
            frame.border_subtitle = "← → or Enter change · Del default · Esc close"
            yield OptionList(id="form-list", compact=True)
            yield LineInput(compact=True, id="form-input")
            yield Static(id="form-about")

    def on_mount(self) -> None:
        self.query_one("#form-input").display = False
        self._fill()
        self._list.focus()

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    @property
    def _list(self) -> OptionList:
        return self.query_one("#form-list", OptionList)

    @property
    def row(self) -> Row | None:
        """The line under the cursor."""
        index = self._list.highlighted
        return self._lines[index] if index is not None and index < len(self._lines) else None

    def _fill(self) -> None:
        listed = self._list
        at = listed.highlighted
        width = max(20, (listed.content_region.width or listed.size.width) - 2)
        listed.clear_options()
        self._lines = []
        group = ""
        for row in self._rows:
            if row.group and row.group != group:
                listed.add_option(Option(Content.styled(f"{row.group} ".ljust(width, "╌"), "$text-disabled"), disabled=True))
                self._lines.append(None)
                group = row.group
            listed.add_option(Option(self._line(row, width)))
            self._lines.append(row)
        if self._done:
            listed.add_option(Option(Content.styled(f"  {self._done}", "bold $accent")))
            self._lines.append(None)
        first = next((place for place, row in enumerate(self._lines) if row is not None), 0)
        listed.highlighted = at if at is not None else first
        self._explain()

    def _line(self, row: Row, width: int) -> Content:
        value = self.values.get(row.key)
        text = one_line(row.show(value), max(8, width - len(row.label) - 8)) or "–"
        style = "$accent bold" if value != self._defaults.get(row.key) else ""
        marks = ("◂ ", " ▸") if row.choices else ("  ", "  ")
        right = Content.assemble((marks[0], "$text-disabled"), (text, style), (marks[1], "$text-disabled"))
        return spread(Content(f"  {row.label}"), right, width)

    @on(OptionList.OptionHighlighted)
    def _explain(self) -> None:
        row = self.row
        lines = [Content.styled(row.help, "$text-muted")] if row is not None else []
        self.query_one("#form-about", Static).update(Content("\n").join([*lines, *self._about(self.values)]))

    @on(OptionList.OptionSelected)
    def _enter(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        row = self.row
        if row is None:
            self.dismiss(self.values)
        elif row.choices:
            self.action_step(1)
        else:
            self._editing = row
            line = self.query_one("#form-input", Input)
            line.placeholder = row.label
            line.value = (row.typed or row.show)(self.values.get(row.key))
            line.display = True
            line.focus()

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        event.stop()
        row, self._editing = self._editing, None
        if row is not None:
            try:
                self._set(row, row.parse(event.value.strip()) if event.value.strip() else self._defaults.get(row.key))
            except ExltuiError as error:
                self.notify(f"{error}\n{error.hint}".strip(), severity="error", markup=False)
        self._close_input()

    def _close_input(self) -> None:
        self.query_one("#form-input").display = False
        self._list.focus()

    def _set(self, row: Row, value: Any) -> None:
        if value != self.values.get(row.key):
            self.values[row.key] = value
            self._changed(row.key, value)
        self._fill()

    def action_step(self, step: int) -> None:
        row = self.row
        if row is not None and row.choices:
            now = self.values.get(row.key)
            at = row.choices.index(now) if now in row.choices else 0
            self._set(row, row.choices[(at + step) % len(row.choices)])

    def action_clear(self) -> None:
        if (row := self.row) is not None:
            self._set(row, self._defaults.get(row.key))

    def action_move(self, step: int) -> None:
        self._list.action_cursor_down() if step > 0 else self._list.action_cursor_up()

    def action_leave(self) -> None:
        if self.query_one("#form-input").display:
            self._editing = None
            self._close_input()
        else:
            self.dismiss(None)
