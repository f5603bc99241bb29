"""The status line: context and speed, each figure in a field of fixed width, and the keys that matter now."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget

from exltui.app import figures
from exltui.app.observed import Observed
from exltui.app.widgets.bar import bar
from exltui.text import one_line

KEPT = 5  # pieces of this rank and above stay longer than the names of keys


@dataclass(frozen=True)
class Piece:
    """One figure of the line. Pieces with the lowest ``rank`` go first when the line is too narrow."""

    rank: int
    content: Content


def pieces(observed: Observed, *, narrow: bool) -> list[Piece]:
    """The figures of the line from left to right."""
    loading, loaded, job = observed.loading, observed.loaded, observed.job
    if loading is not None:
        percent = figures.percent(loading.done, loading.total) if loading.total else ""
        return [Piece(9, Content.assemble((figures.stage(loading.stage), "$accent"), f" {percent}"))]
    if loaded is None:
        state = "no model" if observed.host else "engine starting"
        return [Piece(9, Content.styled(state, "$text-muted"))]
    used = job.context_used if job else None  # of a chat that was opened again the engine knows nothing yet
    total = loaded.context
    found = [Piece(7, Content(one_line(loaded.name, 24)))] if narrow else []
    fraction = (used or 0) / total if total else None
    style = "$error" if fraction and fraction > 0.95 else "$warning" if fraction and fraction > 0.8 else "$primary"
    if not narrow:
        found.append(Piece(3, bar(fraction, 16, style)))
    numbers = f"{figures.count(used):>6} / {figures.count(total)}"
    found.append(Piece(5, _named("ctx" if narrow else "context", numbers, style if fraction and fraction > 0.8 else "")))
    found.append(Piece(8, _named("", f"{figures.rate(_decode_rate(observed)):>6} tok/s")))
    found.append(Piece(4, _named("prefill", f"{figures.rate(_prefill_rate(observed)):>6}/s")))
    found.append(Piece(2, _named("first token", f"{figures.duration(job.first_token_seconds if job else None):>6}")))
    found.append(Piece(1, _named("cached", f"{figures.count(job.cached if job else None):>6}")))
    return found


def _decode_rate(observed: Observed) -> float | None:
    job = observed.job
    if job is None:
        return None
    if job.stats is not None:
        return job.decode_rate
    return observed.meter.decode_rate if observed.meter and job.new_tokens else None


def _prefill_rate(observed: Observed) -> float | None:
    job = observed.job
    if job is None:
        return None
    if job.stats is not None:
        return job.prefill_rate
    return observed.meter.prefill_rate if observed.meter else None


def _hint_line(hints: list[tuple[str, str]]) -> Content:
    return Content("  ").join(Content.assemble((key, "$accent"), (f" {word}", "$text-muted")) for key, word in hints)


def _named(name: str, value: str, style: str = "") -> Content:
    label = [(f"{name} ", "$text-muted")] if name else []
    return Content.assemble(*label, (value, style))


class StatusLine(Widget):
    """One line at the bottom of the screen. ``show`` repaints only the cells that changed."""

    DEFAULT_CSS = """
    StatusLine { height: 1; width: 100%; padding: 0 1; background: $surface; color: $foreground; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._observed: Observed | None = None
        self._hints: tuple[tuple[str, str], ...] = ()
        self._line = Content("")

    def show(self, observed: Observed, hints: tuple[tuple[str, str], ...]) -> None:
        """Take the newest figures and the keys to name at the right edge, as (key, what it does)."""
        self._observed, self._hints = observed, hints
        before, after = self._line, self._compose_line()
        if before == after and before.spans == after.spans:
            return
        self._line = after
        old, new = before.plain, after.plain
        if len(old) != len(new) or before.cell_length != len(old) or after.cell_length != len(new):
            self.refresh()
            return
        differ = [index for index, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        if before.spans != after.spans or not differ:
            self.refresh()
        else:
            first, last = differ[0], differ[-1]
            self.refresh(Region(first + self.gutter.left, 0, last - first + 1, 1))

    def _compose_line(self) -> Content:
        width = self.content_size.width
        if self._observed is None or width <= 0:
            return Content("")
        found = pieces(self._observed, narrow=width < 110)
        gap = Content("   " if width >= 110 else "  ")
        hints = list(self._hints)
        while (room := width - gap.join(piece.content for piece in found).cell_length - _hint_line(hints).cell_length) < 2:
            weakest = min(found, key=lambda piece: piece.rank)
            if len(hints) > 2 and weakest.rank >= KEPT:
                hints.pop()
            elif len(found) > 1 and (weakest.rank < KEPT or not hints):
                found.remove(weakest)
            elif hints:
                hints.pop()
            else:
                return gap.join(piece.content for piece in found).truncate(width, ellipsis=True)
        return Content.assemble(gap.join(piece.content for piece in found), " " * room, _hint_line(hints))

    def on_resize(self) -> None:
        self._line = self._compose_line()
        self.refresh()

    def render(self) -> Content:
        return self._line
