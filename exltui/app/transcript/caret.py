"""Selecting text of the transcript by keys: a caret that the arrows move, a mark, and what lies between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.geometry import Offset
from textual.selection import Selection

if TYPE_CHECKING:
    from exltui.app.transcript.view import Transcript

PAGE_OVERLAP = 2  # rows that stay in view when a page is turned
HINT = "Arrows move, Space marks, Y or Enter copies, Esc leaves."


class Caret:
    """Where the caret stands in the rows of ``talk``. What is selected is the screen's selection, as with the mouse."""

    def __init__(self, talk: Transcript) -> None:
        self._talk = talk
        self._at: Offset | None = None
        self._mark: Offset | None = None

    @property
    def active(self) -> bool:
        return self._at is not None

    def begin(self, row: int) -> None:
        """Put the caret at the first text from ``row`` on."""
        last = self._talk.row_count - 1
        while row < last and self._span(row) is None:
            row += 1
        span = self._span(row)
        if span is not None:
            self._at, self._mark = Offset(span[0], row), None
            self._show()

    def leave(self) -> None:
        self._at = self._mark = None
        self._talk.screen.clear_selection()

    def key(self, key: str) -> bool:
        """Whether ``key`` was one of the caret's: it has moved, or set its mark."""
        if self._at is None:
            return False
        plain = key.removeprefix("shift+")
        moved = self._moved(plain, self._at)
        if moved is not None:
            if key != plain and self._mark is None:
                self._mark = self._at
            self._at = moved
        elif key in ("space", "v"):
            self._mark = None if self._mark is not None else self._at
        else:
            return False
        self._show()
        return True

    # ── where to ──

    def _moved(self, key: str, at: Offset) -> Offset | None:
        page = max(1, self._talk.size.height - PAGE_OVERLAP)
        rows = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -page, "pagedown": page}
        if key in rows:
            return self._to_row(at, rows[key])
        span = self._span(at.y) or (0, 1)
        if key in ("home", "0"):
            return Offset(span[0], at.y)
        if key in ("end", "dollar_sign"):
            return Offset(span[1] - 1, at.y)
        if key in ("left", "h"):
            return Offset(at.x - 1, at.y) if at.x > span[0] else self._to_row(at, -1, edge=1)
        if key in ("right", "l"):
            return Offset(at.x + 1, at.y) if at.x < span[1] - 1 else self._to_row(at, 1, edge=-1)
        return None

    def _to_row(self, at: Offset, by: int, *, edge: int = 0) -> Offset:
        """The same column ``by`` rows on, past rows without text; with ``edge`` the end (1) or the beginning (-1) of that row."""
        step, row = (1 if by > 0 else -1), at.y + by
        row = max(0, min(self._talk.row_count - 1, row))
        while 0 <= row < self._talk.row_count and self._span(row) is None:
            row += step
        span = self._span(row)
        if span is None:
            return at
        return Offset(span[1] - 1 if edge > 0 else span[0] if edge < 0 else max(span[0], min(span[1] - 1, at.x)), row)

    def _span(self, row: int) -> tuple[int, int] | None:
        """Where the text of a row begins and ends; None for one that has none."""
        line = self._talk.row(row)
        if line is None or line.lead < 0:
            return None
        end = len(line.text.rstrip())
        return (line.lead, end) if end > line.lead else None

    def _show(self) -> None:
        if self._at is None:
            return
        first, last = sorted((self._at, self._mark or self._at), key=lambda offset: (offset.y, offset.x))
        self._talk.reveal_row(self._at.y)
        self._talk.screen.selections = {self._talk: Selection(first, Offset(last.x + 1, last.y))}
