"""The transcript widget: one ScrollView with the line API for the whole conversation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich.segment import Segment
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget

from exltui import paths
from exltui.app.transcript import palette as looks
from exltui.app.transcript.entry import Entry, State
from exltui.app.transcript.item import Item
from exltui.app.transcript.palette import Palette
from exltui.app.transcript.repaint import changed_cells, selected_text, with_span, without_first_cell
from exltui.app.transcript.wrap import Line

FRAMES = 15  # a second while text arrives
FRAMES_REMOTE = 8  # the same over SSH
KEPT_ROWS = 6000  # rows whose drawing is kept; those of entries far from the view are drawn again when they come near


class Transcript(ScrollView, can_focus=True):
    """The conversation. Text is fed as it arrives; the widget collects it and repaints what changed, some times a second.
    ``current`` is the id of the message under the message cursor, None when there is no cursor.
    Rows of entries that were never near the view are estimated; they are measured when they come near, and the view stays where it is.
    """

    COMPONENT_CLASSES = looks.COMPONENTS
    DEFAULT_CSS = (
        "Transcript { overflow-y: scroll; overflow-x: hidden; scrollbar-size-vertical: 1; background: $background; }\n" + looks.DEFAULT_CSS
    )

    @dataclass
    class Selected(Message):
        """The message cursor moved to message ``id`` (None: there is no cursor any more)."""

        id: str | None

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.current: str | None = None
        self._items: list[Item] = []
        self._index: dict[str, int] = {}
        self._drawn: dict[str, Item] = {}  # those whose rows are at hand
        self._tops: list[int] = [0]  # first row of each item, and behind the last one the number of rows
        self._palette: Palette | None = None
        self._following = True
        self._moving = False  # the scroll position is being changed by this class, not by a person
        self._grown: set[str] = set()  # ids with text that is not drawn yet
        self._timer: Timer | None = None
        self.ready: Callable[[], bool] = lambda: True  # whether the terminal can take a frame
        self._laid_out = 0  # the width that rows are measured for
        self._page = 0  # the height of the view, until a resize has been dealt with the one before it

    # ── what the app calls ──

    def show(self, entries: list[Entry]) -> None:
        """Show these entries instead of what is there.

        The view goes to the end, but stays where it is when a person has scrolled up in the same conversation. Entries that are the same
        as before keep their drawing.
        """
        standing = self._standing()
        known = {item.entry.id: item for item in self._items}
        self._items = [item if (item := known.get(entry.id)) and item.entry == entry else Item(entry) for entry in entries]
        self._index = {entry.id: index for index, entry in enumerate(entries)}
        self._drawn = {item.entry.id: item for item in self._items if item.drawn}
        self._grown &= set(self._index)
        self._tops = [0]
        if self.current not in self._index:
            self._set_current(None)
        self._lay_out(standing)

    def add(self, entry: Entry) -> None:
        """Put one entry at the end. An entry in state ``streaming`` takes ``feed`` until ``finish``."""
        self._index[entry.id] = len(self._items)
        self._items.append(Item(entry))
        if self._laid_out:
            top = self._tops[-1]
            self._tops.append(top + self._draw(len(self._items) - 1))
            self._refresh_rows(top, self._tops[-1] - top)
            self._keep_end()

    def feed(self, id: str, text: str) -> None:
        """Append ``text`` to an entry; it is drawn with the next frame. An id that is not shown (any more) is passed over."""
        if id in self._index and text:
            self._items[self._index[id]].push(text)
            self._grown.add(id)
            if self._timer is not None:
                self._timer.resume()

    def finish(self, id: str, meta: str, state: State = "done", hint: str = "") -> None:
        """Close a streaming entry: done, stopped or failed (then ``hint`` says why, on a card below the text)."""
        if id in self._index:
            item = self._items[self._index[id]]
            item.entry.meta, item.entry.state, item.entry.hint = meta, state, hint
            item.close()
            self._grown.discard(id)
            if item.drawn_for(self._laid_out):
                self._grow(self._index[id])
                self._refresh_rows(self._tops[self._index[id]], 1)
            else:
                item.forget()

    def set_meta(self, id: str, meta: str) -> None:
        """Replace what stands at the right end of an entry's first line."""
        if id in self._index and (item := self._items[self._index[id]]).entry.meta != meta:
            item.entry.meta = meta
            if item.drawn_for(self._laid_out):
                item.reframe()
                self._refresh_rows(self._tops[self._index[id]], 1)
            else:
                item.forget()

    def set_thought(self, id: str, label: str) -> None:
        """Say how long an entry's thoughts are; it is drawn with the next frame."""
        if id in self._index:
            self._items[self._index[id]].entry.thought = label
            self._grown.add(id)

    def fold(self, id: str) -> bool:
        """Show an entry's thoughts or put them away; False if there are none."""
        standing = self._standing()
        if folded := id in self._index and self._items[self._index[id]].fold():
            self._lay_out(standing)
        return folded

    def text(self, id: str) -> str:
        """The text of an entry as it was given."""
        return self._items[self._index[id]].entry.text

    def code_blocks(self, id: str) -> list[str]:
        """The code blocks of an entry, in the order of their numbers (the first is number 1)."""
        return self._items[self._index[id]].code_blocks()

    def move_cursor(self, step: int) -> str | None:
        """Move the message cursor ``step`` messages down (negative: up). The new id; None once it leaves below the last."""
        ids = [item.entry.id for item in self._items if item.is_message]
        at = ids.index(self.current) if self.current in ids else len(ids)
        at = max(0, at + step)
        self.select(ids[at] if at < len(ids) else None)
        if self.current is None:
            self.follow()
        return self.current

    def select(self, id: str | None) -> None:
        """Put the message cursor on an entry and bring it into view; None takes it away."""
        self._set_current(id if id in self._index else None)
        if self.current is not None:
            self._reveal(self._index[self.current])

    @property
    def following(self) -> bool:
        """Whether the view keeps to the end of the conversation while it grows."""
        return self._following

    def follow(self) -> None:
        """Go to the end and stay there."""
        self._following = True
        if self._tops[-1] > self.scroll_offset.y + self.size.height:
            self._move_to_end()

    # ── layout: rows, and where the view stands among them ──

    def on_mount(self) -> None:
        rate = FRAMES_REMOTE if paths.environment("SSH_CONNECTION") else FRAMES
        self._timer = self.set_interval(1 / rate, self._draw_grown, pause=True)

    def on_resize(self) -> None:
        self._page = self.size.height
        if self.size.width != self._laid_out:
            self._lay_out(self._standing())
            return
        if self._following:
            self._move_to_end()
        else:
            self._move_to(self.scroll_offset.y)
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self.call_next(self._restyle)  # the styles of components are set only after this call

    def _restyle(self) -> None:
        """The theme or a style sheet may have changed: what is in view is drawn anew, the rest when it comes into view."""
        if self._palette is not None and (new := Palette.of(self)) != self._palette:
            self._palette = new
            self._measure(self.scroll_offset.y)
            self.refresh()

    def _looks(self) -> Palette:
        if self._palette is None:
            self._palette = Palette.of(self)
        return self._palette

    def _standing(self) -> tuple[str, float] | None:
        """What is at the top of the view: an entry's id, and how far down in it from 0 to 1. None while following the end."""
        if self._following or not self._items:
            return None
        row = self.scroll_offset.y
        index = self._item_at(row)
        return self._items[index].entry.id, self._share(index, row)

    def _lay_out(self, standing: tuple[str, float] | None) -> None:
        """Estimate everything for the width that there is, and put what was at the top of the view there again, else go to the end."""
        self._following = standing is None or standing[0] not in self._index
        width = self.size.width
        if not width or not self.size.height:
            return
        self._laid_out = width
        for index, item in enumerate(self._items):
            item.estimate(width)
            if item.entry.state == "streaming":
                self._draw(index)
        self._count()
        if standing is None or self._following:
            self._move_to_end()
        else:
            index = self._index[standing[0]]
            self._draw(index)
            self._count(index)
            self._move_to(self._tops[index] + round(standing[1] * self._items[index].height))
        self.refresh()

    def _item_at(self, row: int) -> int:
        """The index of the item at a row; of the last one for rows below it."""
        return max(0, min(len(self._items), bisect_right(self._tops, row)) - 1)

    def _share(self, index: int, row: int) -> float:
        """How far down in an item a row is, from 0 to 1."""
        return (row - self._tops[index]) / max(1, self._items[index].height)

    def _count(self, first: int = 0) -> None:
        """Sum up the heights from item ``first`` on."""
        del self._tops[first + 1 :]
        top = self._tops[-1]
        for item in self._items[first:]:
            top += item.height
            self._tops.append(top)

    def _draw(self, index: int) -> int:
        """Draw one item if it is not; its height."""
        item = self._items[index]
        item.draw(self._laid_out, self._looks())
        self._drawn[item.entry.id] = item
        return item.height

    def _measure(self, row: int) -> int:
        """Draw all items within a page of a view that starts at ``row``; the row that then holds what ``row`` held."""
        if not self._laid_out or not self._items:
            return row
        page = self.size.height
        anchor = self._item_at(row)
        share = self._share(anchor, row)
        below = self._draw(anchor)
        offset = round(share * below) if share < 1 else row - self._tops[anchor]
        last, first, above = anchor, anchor, 0
        while last + 1 < len(self._items) and below < offset + 2 * page:
            last += 1
            below += self._draw(last)
        while first > 0 and above < page:
            first -= 1
            above += self._draw(first)
        self._count(first)
        self._forget_far(first, last)
        return max(0, self._tops[anchor] + offset)

    def _forget_far(self, first: int, last: int) -> None:
        """Give back the memory of rows outside of items ``first`` to ``last`` once there are many."""
        if sum(item.height for item in self._drawn.values()) <= KEPT_ROWS:
            return
        near = {item.entry.id for item in self._items[first : last + 1]}
        for id, item in list(self._drawn.items()):
            if id not in near and item.entry.state != "streaming":
                item.forget()
                del self._drawn[id]

    def _move_to(self, row: int) -> None:
        """Put ``row`` at the top of the view, as far as there is something to see."""
        row = self._measure(max(0, row))
        self._place(row)

    def _move_to_end(self) -> None:
        """Put the last row at the bottom of the view. Measuring can change where that is, so it is looked at again."""
        page = self.size.height
        for _ in range(8):
            end = max(0, self._tops[-1] - page)
            self._measure(end)
            if end == max(0, self._tops[-1] - page):
                break
        self._place(max(0, self._tops[-1] - page))

    def _place(self, row: int) -> None:
        """Set the scroll position and the range of the scroll bar, without a layout of the screen."""
        extent = max(self._tops[-1], row + self.size.height)
        if extent != self.virtual_size.height or self.virtual_size.width != self.size.width:
            self.set_reactive(Widget.virtual_size, Size(self.size.width, extent))
            self.vertical_scrollbar.window_virtual_size = extent
            self.vertical_scrollbar.window_size = self.size.height
        self._moving = True
        try:
            self.scroll_y = self.scroll_target_y = row
        finally:
            self._moving = False

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Follow the end or stop following it as a person scrolls, and measure what comes into view."""
        super().watch_scroll_y(old_value, new_value)
        old, new = round(old_value), round(new_value)
        if self._moving or old == new or self.size.height != self._page:  # a view that has become taller is moved before its resize
            return
        self._following = new > old and new + self.size.height >= self._tops[-1]
        heights = self._tops[-1]
        row = self._measure(new)
        if row != new or self._tops[-1] != heights:
            self._place(row)
            self.refresh()

    def scroll_to(self, x: float | None = None, y: float | None = None, **options: Any) -> None:
        """Scroll without animation: each step of one would repaint the whole pane."""
        super().scroll_to(x, y, **{**options, "animate": False})

    def scroll_end(self, **_: Any) -> None:
        """Go to the end and follow it."""
        self.follow()

    def _keep_end(self) -> None:
        """When the end has left the view below while following, turn a page: the end then stands at half height."""
        page = self.size.height
        if not self._following:
            if self._tops[-1] > self.virtual_size.height:
                self._extend()
        elif self._tops[-1] > self.scroll_offset.y + page:
            grows = any(item.entry.state == "streaming" for item in self._drawn.values())
            if grows:
                self._move_to(self._tops[-1] - (page + 1) // 2)
            else:
                self._move_to_end()

    def _extend(self) -> None:
        """Let the scroll bar reach half a page further than there are rows, so that it need not move with every row."""
        self.set_reactive(Widget.virtual_size, Size(self.size.width, self._tops[-1] + self.size.height // 2))
        self.vertical_scrollbar.window_virtual_size = self.virtual_size.height

    # ── drawing ──

    def _draw_grown(self) -> None:
        """Draw what was fed since the last frame. The timer stops by itself when there is nothing."""
        if not self.ready():
            return
        if not self._grown and self._timer:
            self._timer.pause()
        grown, self._grown = self._grown, set()
        if self._laid_out:
            for id in grown:
                self._grow(self._index[id])

    def _grow(self, index: int) -> None:
        """Draw one item's new text and ask for a repaint of the cells that changed."""
        item, top, height = self._items[index], self._tops[index], self._items[index].height
        if not item.drawn_for(self._laid_out):
            return
        change = item.update()
        row = self.scroll_offset.y
        for number, (old, new) in enumerate(zip_longest(change.old, change.new)):
            y = top + change.first + number - row
            if 0 <= y < self.size.height and (cells := changed_cells(old, new)):
                self.refresh(Region(cells[0], y, cells[1] - cells[0], 1))
        grown = item.height - height
        if grown:
            self._count(index)
            if index + 1 < len(self._items):
                self._refresh_rows(self._tops[index], self._tops[-1])
                if top + height <= row and not self._following:
                    self._move_to(row + grown)
            self._keep_end()

    def _refresh_rows(self, top: int, count: int) -> None:
        """Ask for a repaint of some rows, as far as they are in view."""
        region = Region(0, top - self.scroll_offset.y, self.size.width, count).intersection(self.size.region)
        if region:
            self.refresh(region)

    def render_line(self, y: int) -> Strip:
        """Row ``y`` of the view."""
        row, width = self.scroll_offset.y + y, self.size.width
        line = self.row(row)
        base = self.rich_style
        if line is None:
            return Strip.blank(width, base)
        index = self._item_at(row)
        segments = line.segments
        if self.current is not None and self._items[index].entry.id == self.current and row < self._tops[index + 1] - 1:
            segments = (Segment("▌", self._looks()["cursor"]), *without_first_cell(segments))
        strip = Strip(Segment.simplify(Segment.apply_style(segments, base)))
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(row)) is not None:
            strip = with_span(strip, *span, self.screen.get_component_rich_style("screen--selection"))
        return strip.crop_extend(0, width, base).apply_offsets(0, row)

    def row(self, row: int) -> Line | None:
        """One row, None below the last. An item that is not drawn (its rows were never near) shows as blank until it is measured."""
        if not 0 <= row < self._tops[-1]:
            return None
        index = self._item_at(row)
        rows = self._items[index].rows(row - self._tops[index], row - self._tops[index] + 1)
        return rows[0] if rows else None

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return self._tops[-1]

    def first_row(self, id: str | None) -> int:
        """The first row of an entry; without one, of what is in view."""
        return self._tops[self._index[id]] if id in self._index else self.scroll_offset.y

    def reveal_row(self, row: int) -> None:
        """Scroll as little as it takes to see one row."""
        top, page = self.scroll_offset.y, self.size.height
        if not top <= row < top + page:
            self._following = False
            self._move_to(row if row < top else row - page + 1)

    # ── the message cursor ──

    def _set_current(self, id: str | None) -> None:
        if id == self.current:
            return
        for changed in (self.current, id):
            if changed in self._index and (index := self._index[changed]) < len(self._tops) - 1:
                top = self._tops[index]
                region = Region(0, top - self.scroll_offset.y, 1, self._tops[index + 1] - top).intersection(self.size.region)
                if region:
                    self.refresh(region)
        self.current = id
        self.post_message(self.Selected(id))

    def _reveal(self, index: int) -> None:
        """Scroll as little as it takes to see an item, its first row above all."""
        self._move_to(self.scroll_offset.y)
        top, bottom, page = self._tops[index], self._tops[index + 1], self.size.height
        row = self.scroll_offset.y
        if top < row or bottom - top >= page:
            row = top
        elif bottom > row + page:
            row = bottom - page
        if row != self.scroll_offset.y:
            self._following = False
            self._move_to(row)

    def on_click(self, event: events.Click) -> None:
        """A click on a message puts the message cursor there."""
        row = self.scroll_offset.y + event.y
        if self._items and row < self._tops[-1] and self.text_selection is None:
            item = self._items[self._item_at(row)]
            self._set_current(item.entry.id if item.is_message else None)

    # ── selection ──

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text as it was written: wrapped lines in one, without indents and bars."""
        if selection.start is None and selection.end is None:
            return "\n\n".join(item.entry.text for item in self._items), "\n"
        if not self._items:
            return None
        first = selection.start.y if selection.start else 0
        last = min(selection.end.y if selection.end else self._tops[-1] - 1, self._tops[-1] - 1)
        copied = ""
        for index in range(self._item_at(first), self._item_at(last) + 1):
            item, top, bottom = self._items[index], self._tops[index], self._tops[index + 1]
            if not item.drawn_for(self._laid_out) and first <= top and bottom - 1 <= last:
                copied += f"\n{item.entry.text}\n"  # selected as a whole and far away: as it was written
                continue
            if self._draw(index) != bottom - top:
                self._count(index)
            for row in range(max(first, top), min(last + 1, bottom)):
                copied += selected_text(self.row(row), selection.get_span(row), first_row=row == first)
        return copied.strip("\n"), "\n"
