"""The sampler pane: every setting live, with its range, unit and off value; the next message uses what stands here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from exltui.app.fields import Field, changed, grouped, replaced
from exltui.app.widgets.bar import spread
from exltui.errors import SamplingError
from exltui.protocol import Sampling
from exltui.sampling import Value

Line = Field | str  # a setting, or the heading of a group


class SamplerPane(Widget, can_focus=True):
    """A list of settings. Left and right step a value, Enter or a digit edits it, Delete puts the default back; groups fold."""

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

    class OrderWanted(Message):
        """The order of the stages is to be changed."""

    def __init__(self, sampling: Sampling, defaults: Sampling, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.sampling = sampling
        self.defaults = defaults
        self._row = self._first = 0  # under the cursor, and the first that is shown
        self._open: set[str] = set()  # groups that are unfolded
        self._typed: str | None = None
        self._error = ""

    def lines(self) -> list[Line]:
        """What there is to see, from top to bottom."""
        found: list[Line] = []
        for group, fields in grouped():
            found += [group] if group else []
            found += fields if not group or group in self._open else []
        return found

    @property
    def field(self) -> Field | None:
        """The setting under the cursor; None on a heading."""
        lines = self.lines()
        line = lines[min(self._row, len(lines) - 1)]
        return line if isinstance(line, Field) else None

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def on_key(self, event: events.Key) -> None:
        """While a value is typed every key belongs to it; a digit starts typing."""
        character = event.character or ""
        if self._typed is None:
            if self.field is not None and character and character in "0123456789.":
                self._typed = character
                self._stop(event)
            return
        if event.key == "enter":
            self._commit()
        elif event.key == "escape":
            self._typed, self._error = None, ""
        elif event.key == "backspace":
            self._typed = self._typed[:-1]
        elif event.is_printable and character:
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
        row = event.y - self.gutter.top + self._first
        if 0 <= row < len(self.lines()):
            self._row = row
            if self.field is None:
                self._toggle()
            self.refresh()

    def action_move(self, steps: int) -> None:
        self._row = (self._row + steps) % len(self.lines())
        self._error = ""
        self.refresh()

    def action_step(self, steps: int) -> None:
        field = self.field
        if field is None:
            self._toggle()
        else:
            self._set(field.stepped(getattr(self.sampling, field.name), steps))

    def action_edit(self) -> None:
        field = self.field
        if field is None:
            self._toggle()
        elif field.name == "order":
            self.post_message(self.OrderWanted())
        elif field.setting.kind == "switch":
            self.action_step(1)
        else:
            self._typed = field.text(getattr(self.sampling, field.name)) if field.setting.kind == "text" else ""
        self.refresh()

    def _toggle(self) -> None:
        """Fold or unfold the group under the cursor."""
        line = self.lines()[self._row]
        if isinstance(line, str):
            self._open ^= {line}
        self.refresh()

    def action_off(self) -> None:
        if (field := self.field) is not None:
            self._set(field.setting.off if field.setting.off is not None else field.setting.default)

    def action_default(self) -> None:
        if (field := self.field) is not None:
            self._set(getattr(self.defaults, field.name))

    def action_greedy(self) -> None:
        self.take(replaced(self.sampling, "temperature", 0.0))

    def action_all_defaults(self) -> None:
        self.take(self.defaults)

    def _commit(self) -> None:
        typed, self._typed = self._typed or "", None
        field = self.field
        if field is None or (not typed and field.setting.kind != "text" and field.setting.default is not None):
            return
        try:
            self._set(field.parse(typed))
        except SamplingError as error:
            self._error = str(error)

    def _set(self, value: Value) -> None:
        if (field := self.field) is not None:
            self.take(replaced(self.sampling, field.name, value))

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
        lines, notes = self.lines(), self._notes(width)
        room = height if height <= len(notes) + 4 else height - len(notes) - 1
        self._first = max(0, min(self._row - room // 2, len(lines) - room))
        other = changed(self.sampling, self.defaults)
        shown = [self._line(row, line, other, width) for row, line in enumerate(lines)][self._first : self._first + max(1, room)]
        return Content("\n").join([*shown, Content(""), *notes] if room < height else shown)

    def _line(self, row: int, line: Line, other: set[str], width: int) -> Content:
        chosen = row == self._row and self.has_focus
        if isinstance(line, str):
            number = len({field.name for group, fields in grouped() if group == line for field in fields} & other)
            sign = "▾" if line in self._open else "▸"
            right = Content.styled(f"{number} changed " if number else "", "$accent")
            shown = spread(Content.styled(f"{sign} {line}", "$text-muted"), right, width)
        else:
            label = Content.assemble(("•" if line.name in other else " ", "$accent"), line.label)
            shown = spread(label, self._value(line, chosen, line.name in other), width)
        return shown.stylize("$block-cursor-foreground on $block-cursor-background") if chosen else shown

    def _value(self, field: Field, chosen: bool, is_changed: bool) -> Content:
        value, off = getattr(self.sampling, field.name), field.setting.off
        if chosen and self._typed is not None:
            return Content.assemble((self._typed, "bold"), ("▏", "$accent"))
        if field.name == "temperature" and value == 0:
            return Content.styled("greedy ", "bold" if chosen else "$accent")
        if off not in (None, "") and field.name != "temperature" and value == off:
            return Content.styled("off ", "" if chosen else "$text-muted")
        return Content.styled(f"{field.text(value)} ", "bold" if chosen else "$accent" if is_changed else "")

    def _notes(self, width: int) -> list[Content]:
        """What stands below the list: an error, or help for the setting under the cursor."""
        if self._error:
            return Content.styled(self._error, "$error").wrap(width)
        field = self.field
        if not self.has_focus:
            return []
        if field is None:
            return [Content.styled("Enter unfolds or folds these.", "$text-muted")]
        return [
            *Content.styled(field.setting.help, "$text-muted").wrap(width),
            *Content.styled(field.range(), "$accent").wrap(width),
        ]
