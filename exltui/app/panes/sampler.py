"""The sampler pane: every setting live, with its range and off value; the next message uses what stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from exltui.app.fields import FIELDS, Field, changed, replaced
from exltui.app.widgets.bar import spread
from exltui.errors import SamplingError
from exltui.protocol import Sampling

_EDITING = set("0123456789.-") | set("offralndm")


class SamplerPane(Widget, can_focus=True):
    """A list of settings. Left and right step a value, Enter or a digit edits it, Delete puts the default back."""

    BORDER_TITLE = "Sampler"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Previous setting", id="sampler.up", show=False),
        Binding("down,j", "move(1)", "Next setting", id="sampler.down", show=False),
        Binding("left,h,minus", "step(-1)", "Less", id="sampler.less"),
        Binding("right,l,plus", "step(1)", "More", id="sampler.more"),
        Binding("shift+left", "step(-10)", "Ten steps less", id="sampler.much_less", show=False),
        Binding("shift+right", "step(10)", "Ten steps more", id="sampler.much_more", show=False),
        Binding("enter", "edit", "Type a value", id="sampler.edit"),
        Binding("o", "off", "Switch off", id="sampler.off"),
        Binding("delete,backspace", "default", "Default", id="sampler.default"),
        Binding("g", "greedy", "Greedy (temperature 0)", id="sampler.greedy"),
        Binding("R", "all_defaults", "All defaults", id="sampler.all_defaults"),
    ]

    @dataclass
    class Changed(Message):
        """The settings are other ones now."""

        sampling: Sampling

    def __init__(self, sampling: Sampling, defaults: Sampling, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.sampling = sampling
        self.defaults = defaults
        self._row = 0
        self._typed: str | None = None
        self._error = ""

    @property
    def field(self) -> Field:
        """The setting under the cursor."""
        return FIELDS[self._row]

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_key(self, event: events.Key) -> None:
        """While a value is typed every key belongs to it; a digit starts typing."""
        character = event.character or ""
        if self._typed is None:
            if character and character in "0123456789.":
                self._typed = character
                self._stop(event)
            return
        if event.key == "enter":
            self._commit()
        elif event.key == "escape":
            self._typed, self._error = None, ""
        elif event.key == "backspace":
            self._typed = self._typed[:-1]
        elif character in _EDITING:
            self._typed += character
        elif event.key in ("up", "down", "tab"):
            self._commit()
            return
        self._stop(event)

    def _stop(self, event: events.Key) -> None:
        event.prevent_default()
        event.stop()
        self.refresh()

    def on_blur(self) -> None:
        self._typed, self._error = None, ""
        self.refresh()

    def on_focus(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        """A click chooses the setting of its line."""
        row = next((row for line, row in enumerate(self._row_lines()) if line + self._first_line() == event.y - self.gutter.top), None)
        if row is not None:
            self._row = row
            self.refresh()

    def action_move(self, steps: int) -> None:
        self._row = (self._row + steps) % len(FIELDS)
        self._error = ""
        self.refresh()

    def action_step(self, steps: int) -> None:
        self._set(self.field.stepped(getattr(self.sampling, self.field.name), steps))

    def action_edit(self) -> None:
        self._typed = ""
        self.refresh()

    def action_off(self) -> None:
        self._set(-1 if self.field.name == "token_repetition_range" else self.field.off)

    def action_default(self) -> None:
        self._set(getattr(self.defaults, self.field.name))

    def action_greedy(self) -> None:
        self.take(replaced(self.sampling, "temperature", 0.0))

    def action_all_defaults(self) -> None:
        self.take(self.defaults)

    def _commit(self) -> None:
        typed, self._typed = self._typed or "", None
        if not typed and self.field.name != "seed":
            return
        try:
            self._set(self.field.parse(typed))
        except SamplingError as error:
            self._error = str(error)

    def _set(self, value: float | int | None) -> None:
        self.take(replaced(self.sampling, self.field.name, value))

    def take(self, sampling: Sampling) -> None:
        """Use these settings."""
        self._error = ""
        if sampling != self.sampling:
            self.sampling = sampling
            self.post_message(self.Changed(sampling))
        self.refresh()

    # ── looks ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def render(self) -> Content:
        width, height = self.content_size
        if width < 8:
            return Content("")
        rows = self._rows(width)
        notes = self._notes(width)
        if height >= len(rows) + len(notes) + 1:
            return Content("\n").join([*rows, Content(""), *notes])
        room = height - len(notes) - 1 if height > len(notes) + 4 else height
        first = self._first_line()
        lines = rows[first : first + max(1, room)]
        return Content("\n").join([*lines, Content(""), *notes] if room < height else lines)

    def _first_line(self) -> int:
        """The first of the lines that is shown when not all of them fit."""
        lines = self._row_lines()
        room = max(1, self.content_size.height - len(self._notes(self.content_size.width)) - 1)
        if len(lines) <= room:
            return 0
        cursor = lines.index(self._row)
        return max(0, min(cursor - room // 2, len(lines) - room))

    @staticmethod
    def _row_lines() -> list[int | None]:
        """The row that each line shows; None for a heading."""
        lines: list[int | None] = []
        for row, field in enumerate(FIELDS):
            if row and field.group != FIELDS[row - 1].group:
                lines.append(None)
            lines.append(row)
        return lines

    def _rows(self, width: int) -> list[Content]:
        other = changed(self.sampling, self.defaults)
        lines: list[Content] = []
        for row, field in enumerate(FIELDS):
            if row and field.group != FIELDS[row - 1].group:
                lines.append(Content.styled(f"{field.group} ".ljust(width, "╌"), "$text-disabled"))
            lines.append(self._line(row, field, field.name in other, width))
        return lines

    def _line(self, row: int, field: Field, is_changed: bool, width: int) -> Content:
        chosen = row == self._row and self.has_focus
        value = getattr(self.sampling, field.name)
        if chosen and self._typed is not None:
            shown = Content.assemble((f"{self._typed}", "bold"), ("▏", "$accent"))
        elif field.name == "temperature" and value == 0:
            shown = Content.styled("greedy ", "bold" if chosen else "$accent")
        elif field.off is not None and field.name != "temperature" and value == field.off:
            shown = Content.styled("off ", "" if chosen else "$text-muted")
        else:
            shown = Content.styled(f"{field.text(value)} ", "bold" if chosen else "$accent" if is_changed else "")
        label = Content.assemble(("•" if is_changed else " ", "$accent"), field.label)
        line = spread(label, shown, width)
        return line.stylize("$block-cursor-foreground on $block-cursor-background") if chosen else line

    def _notes(self, width: int) -> list[Content]:
        """The error of the last input, or the help of the setting under the cursor."""
        if self._error:
            return Content.styled(self._error, "$error").wrap(width)
        if not self.has_focus:
            return []
        return [
            *Content.styled(self.field.help, "$text-muted").wrap(width),
            Content.styled(self.field.range(), "$accent").truncate(width, ellipsis=True),
        ]
