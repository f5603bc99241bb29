"""Repainting in parts on a slow line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.geometry import Region
from textual.scrollbar import ScrollBar
from textual.widget import Widget

from exltui.app.link import WatchedFile

if TYPE_CHECKING:
    from typing_extensions import Self

    Base = Widget
else:
    Base = object  # Textual takes styles and the like from the first base that is a widget

Link = Callable[[], WatchedFile | None]  # the way to the terminal; None where there is none to watch
CELLS = 80  # that are repainted at once on a slow line: with their colours less than a fifth of a second at 9,600 baud
AT_ONCE = 4  # rows
PER_SECOND = 8


class InParts(Base):
    """A widget that is repainted a few rows at a time while the line is slow, so that a key's echo has not to wait for all of them."""

    link: Link

    def repaint_in_parts(self, link: Link) -> None:
        """To be called once, before the widget is mounted."""
        self.link = link
        self._owed: dict[int, tuple[int, int]] = {}  # row -> the columns that are to be repainted

    def on_mount(self) -> None:
        self._payer = self.set_interval(1 / PER_SECOND, self._pay, pause=True)

    def refresh(self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False) -> Self:
        file = self.link()
        if file is None or not file.slow or layout or recompose or not self.is_mounted:
            return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)
        for region in regions or (self.size.region,):
            for y in range(region.y, region.bottom):
                start, end = self._owed.get(y, (region.x, region.right))
                self._owed[y] = (min(start, region.x), max(end, region.right))
        self._payer.resume()
        return self

    def _pay(self) -> None:
        """Repaint the next rows that are owed, if the line is free."""
        file = self.link()
        if not self._owed:
            self._payer.pause()
        elif file is None or not file.waiting:
            paid: list[Region] = []
            for y in sorted(self._owed):
                start, end = self._owed.pop(y)
                paid.append(Region(start, y, end - start, 1))
                if sum(region.area for region in paid) >= CELLS or len(paid) == AT_ONCE:
                    break
            super().refresh(*paid)


class Bar(InParts, ScrollBar):
    """The scroll bar of such a widget."""

    def __init__(self, link: Link, thickness: int) -> None:
        self.repaint_in_parts(link)
        super().__init__(vertical=True, name="vertical", thickness=thickness)
        self.display = False
