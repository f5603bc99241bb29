"""The token inspector: a cursor over the tokens of a reply, how likely each was, and what else could have been said."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from exltui.app.figures import DASH
from exltui.app.inspect import InspectedReply
from exltui.app.scope import shown
from exltui.app.screens.microscope import Ask
from exltui.app.screens.once import ClosesOnce
from exltui.app.widgets.bar import bar
from exltui.protocol import Explained, QueryFailed
from exltui.text import visible

HEAT = ((0.8, ""), (0.5, "$success"), (0.2, "$warning"), (0.0, "$error"))  # colour from this raw probability on
NEAR = 400  # tokens on either side of the cursor that are drawn


class InspectScreen(ClosesOnce, ModalScreen[tuple[int, str] | None]):
    """Gives the place of a token and the text that is to stand there instead, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,i", "leave", "Close", id="inspect.close"),
        Binding("left,h", "move(-1)", "Token before", id="inspect.left"),
        Binding("right,l", "move(1)", "Next token", id="inspect.right"),
        Binding("up,k", "move(-10)", "Ten tokens back", id="inspect.up"),
        Binding("down,j", "move(10)", "Ten tokens on", id="inspect.down"),
        Binding("enter,m", "look", "Sampler microscope on this token", id="inspect.microscope"),
        Binding("u", "unsure", "Next token that the model was unsure of", id="inspect.unsure"),
        *(Binding(str(number), f"branch({number - 1})", show=False) for number in range(1, 10)),
    ]

    def __init__(self, reply: InspectedReply, ask: Ask, look: Callable[[int], None]) -> None:
        super().__init__()
        self._tokens, self._ask, self._look = reply.tokens, ask, look
        self._at = 0
        self._explained: Explained | None = None  # what the sampler made of the token under the cursor
        self._asked = False
        self._problem = ""  # why it could not be said

    def compose(self) -> ComposeResult:
        with Vertical(id="inspect") as frame:
            frame.border_title = f"Tokens · {len(self._tokens)}"
            frame.border_subtitle = "← → move · U unsure · 1-9 branch · Enter microscope · Esc close"
            with VerticalScroll(id="inspect-text", can_focus=False):
                yield Static(id="inspect-tokens")
            yield Static(id="inspect-about")

    def on_mount(self) -> None:
        self._draw()
        self._explain()

    def _explain(self) -> None:
        """Ask what the sampler made of the token under the cursor, unless an answer is still to come."""
        if not self._asked:
            self._asked = True
            self._ask(self._at, None, self._answered, self._refused)

    def _answered(self, explained: Explained) -> None:
        self._asked, self._explained, self._problem = False, explained, ""
        token = self._tokens[self._at]
        if (explained.job, explained.position) != (token.job, token.position):
            self._explain()  # the cursor has moved on
        elif self.is_there:
            self._draw()

    def _refused(self, failed: QueryFailed) -> None:
        self._asked, self._explained, self._problem = False, None, f"{failed.error}: {failed.hint}"
        if self.is_there:
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
        drawn = self._drawn()
        for number, other in enumerate(token.alternatives[:9], 1):
            after = "" if drawn is None else f"{drawn[other.token]:6.1%}" if drawn.get(other.token) else f"     {DASH}"
            mark = "●" if other.token == token.token else " "
            lines.append(
                Content.assemble(
                    (f" {number} {mark} ", "$accent"), f"{shown(other.text):<24.24} {other.raw:6.1%} {after:>6}  ", bar(other.raw, 20)
                )
            )
        return [*lines, Content.styled(f" after the sampler: {self._problem}", "$error")] if self._problem else lines

    def _drawn(self) -> dict[int, float] | None:
        """Probabilities after the sampler by token; None while they are not known."""
        token, explained = self._tokens[self._at], self._explained
        if explained is None or (explained.job, explained.position) != (token.job, token.position):
            return None
        return dict(zip(explained.ids, explained.stages[-1].probabilities, strict=True))

    def action_move(self, step: int) -> None:
        self._at = max(0, min(len(self._tokens) - 1, self._at + step))
        self._draw()
        self._explain()

    def action_unsure(self) -> None:
        """Go to the next token whose probability was below a half."""
        later = range(self._at + 1, len(self._tokens))
        self._at = next((place for place in later if self._tokens[place].raw < 0.5), self._at)
        self._draw()
        self._explain()

    def action_look(self) -> None:
        self._look(self._at)

    def action_branch(self, number: int) -> None:
        alternatives = self._tokens[self._at].alternatives
        if number < len(alternatives):
            self.dismiss((self._at, alternatives[number].said))

    def action_leave(self) -> None:
        self.dismiss(None)
