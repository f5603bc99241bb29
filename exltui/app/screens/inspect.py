"""The token inspector: a cursor over the tokens of a reply, how likely each was, and what else could have been said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from exltui.app.figures import DASH
from exltui.app.inspect import InspectedToken
from exltui.app.widgets.bar import bar
from exltui.text import visible

HEAT = ((0.8, ""), (0.5, "$success"), (0.2, "$warning"), (0.0, "$error"))  # colour from this raw probability on
NEAR = 400  # tokens on either side of the cursor that are drawn


class InspectScreen(ModalScreen[tuple[int, str] | None]):
    """Gives the place of a token and the text that is to stand there instead, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,i", "leave", "Close", id="inspect.close"),
        Binding("left,h", "move(-1)", "Token before", id="inspect.left"),
        Binding("right,l", "move(1)", "Next token", id="inspect.right"),
        Binding("up,k", "move(-10)", "Ten tokens back", id="inspect.up"),
        Binding("down,j", "move(10)", "Ten tokens on", id="inspect.down"),
        Binding("u", "unsure", "Next token that the model was unsure of", id="inspect.unsure"),
        *(Binding(str(number), f"branch({number - 1})", show=False) for number in range(1, 10)),
    ]

    def __init__(self, tokens: Sequence[InspectedToken]) -> None:
        super().__init__()
        self._tokens = list(tokens)
        self._at = 0

    def compose(self) -> ComposeResult:
        with Vertical(id="inspect") as frame:
            frame.border_title = f"Tokens · {len(self._tokens)}"
            frame.border_subtitle = "← → move · U unsure · 1-9 branch with that token · Esc close"
            with VerticalScroll(id="inspect-text", can_focus=False):
                yield Static(id="inspect-tokens")
            yield Static(id="inspect-about")

    def on_mount(self) -> None:
        self._draw()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        first = max(0, self._at - NEAR)
        pieces: list[tuple[str, str]] = []
        for place, token in enumerate(self._tokens[first : self._at + NEAR], first):
            look = next(style for least, style in HEAT if token.raw >= least)
            text = visible(token.text).replace("\n", "⏎\n")
            pieces.append((text, "reverse bold" if place == self._at else look))
        self.query_one("#inspect-tokens", Static).update(Content.assemble(*pieces))
        self.query_one("#inspect-about", Static).update(Content("\n").join(self._about()))

    def _about(self) -> list[Content]:
        token = self._tokens[self._at]
        head = Content.assemble(
            (f" {self._at + 1}  ", "$text-muted"), (shown(token.text), "bold"),
            ("   model ", "$text-muted"), f"{token.raw:6.1%}", ("   after the sampler ", "$text-muted"), f"{token.drawn:6.1%}",
        )  # fmt: skip
        lines = [head]
        for number, other in enumerate(token.alternatives[:9], 1):
            drawn = f"{other.drawn:6.1%}" if other.drawn is not None else f"     {DASH}"
            mark = "●" if other.text == token.text else " "
            lines.append(
                Content.assemble(
                    (f" {number} {mark} ", "$accent"), f"{shown(other.text):<24.24} {other.raw:6.1%} {drawn}  ", bar(other.raw, 20)
                )
            )
        return lines

    def action_move(self, step: int) -> None:
        self._at = max(0, min(len(self._tokens) - 1, self._at + step))
        self._draw()

    def action_unsure(self) -> None:
        """Go to the next token whose probability was below a half."""
        later = range(self._at + 1, len(self._tokens))
        self._at = next((place for place in later if self._tokens[place].raw < 0.5), self._at)
        self._draw()

    def action_branch(self, number: int) -> None:
        alternatives = self._tokens[self._at].alternatives
        if number < len(alternatives):
            self.dismiss((self._at, alternatives[number].text))

    def action_leave(self) -> None:
        self.dismiss(None)


def shown(text: str) -> str:
    """A token's text with its blanks to be seen."""
    return f"“{visible(text).replace(chr(10), '⏎')}”"
