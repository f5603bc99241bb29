"""The looks of the transcript: every colour is a component style, so that themes and style sheets reach all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.style import Style

if TYPE_CHECKING:
    from textual.widget import Widget

_RULES = {
    "user": "color: $accent; text-style: bold;",
    "assistant": "color: $primary; text-style: bold;",
    "system": "color: $secondary; text-style: bold;",
    "meta": "color: $text-muted;",
    "notice": "color: $text-muted;",
    "error": "color: $error; text-style: bold;",
    "hint": "color: $text-muted;",
    "cursor": "color: $accent;",
    "heading1": "color: $primary; text-style: bold underline;",
    "heading2": "color: $primary; text-style: bold;",
    "heading3": "color: $foreground; text-style: bold;",
    "strong": "text-style: bold;",
    "emphasis": "text-style: italic;",
    "strike": "text-style: strike;",
    "inline-code": "color: $accent;",
    "link": "color: $primary; text-style: underline;",
    "target": "color: $text-muted;",
    "marker": "color: $accent;",
    "bar": "color: $secondary;",
    "rule": "color: $foreground 40%;",
    "math": "color: $secondary;",
    "code": "background: $panel; color: $foreground;",
    "code-label": "background: $panel; color: $text-muted;",
    "code-keyword": "background: $panel; color: $secondary; text-style: bold;",
    "code-string": "background: $panel; color: $success;",
    "code-number": "background: $panel; color: $warning;",
    "code-comment": "background: $panel; color: $text-muted; text-style: italic;",
    "code-name": "background: $panel; color: $primary;",
    "code-builtin": "background: $panel; color: $accent;",
    "code-wrong": "background: $panel; color: $error;",
    "code-added": "background: $panel; color: $success;",
    "code-removed": "background: $panel; color: $error;",
}
PREFIX = "transcript--"
COMPONENTS = {PREFIX + name for name in _RULES}
DEFAULT_CSS = "Transcript {\n" + "\n".join(f"    & > .{PREFIX}{name} {{ {rules} }}" for name, rules in _RULES.items()) + "\n}"


@dataclass(frozen=True)
class Palette:
    """Rich styles by name; "" is text as it is. Names without a colour or ground leave the widget's."""

    styles: dict[str, Style]
    combined: dict[tuple[str, ...], Style] = field(default_factory=dict, compare=False)

    def __getitem__(self, name: str) -> Style:
        return self.styles[name]

    def over(self, names: tuple[str, ...]) -> Style:
        """Several looks over each other, the last one on top."""
        style = self.combined.get(names)
        if style is None:
            style = self.combined[names] = sum((self.styles[name] for name in names), Style.null())
        return style

    @classmethod
    def of(cls, widget: Widget) -> Palette:
        """The looks that the theme and the style sheets give to a Transcript."""
        styles: dict[str, Style] = {"": Style.null()}
        for name, rules in _RULES.items():
            full = widget.get_component_rich_style(PREFIX + name)
            coloured, grounded = "color:" in rules.replace("background:", ""), "background:" in rules
            styles[name] = Style(
                color=full.color if coloured else None,
                bgcolor=full.bgcolor if grounded else None,
                bold=full.bold,
                italic=full.italic,
                underline=full.underline,
                strike=full.strike,
            )
        return cls(styles)


PLAIN = Palette({"": Style.null(), **{name: Style(meta={"look": name}) for name in _RULES}})
