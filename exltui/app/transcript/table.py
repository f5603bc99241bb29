"""Tables: columns as wide as their contents where there is room, otherwise shared out and wrapped."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from exltui.app.transcript.wrap import Line, Run, spaces, wrap

Cell = tuple[list[Run], str]
_BETWEEN = " │ "
_SLIMMEST = 3


def draw_table(rows: Sequence[Sequence[Cell]], width: int, rule: Style) -> list[Line]:
    """The lines of a table whose first row is the head."""
    count = max((len(row) for row in rows), default=0)
    if count == 0:
        return []
    natural = [max((_cells(row[at][0]) for row in rows if at < len(row)), default=1) for at in range(count)]
    columns = fit_columns([max(1, cells) for cells in natural], width - len(_BETWEEN) * (count - 1))
    if sum(columns) + len(_BETWEEN) * (count - 1) > width:
        return _draw_records(rows, width, rule)
    lines: list[Line] = []
    spaced = _tall(rows[1:], columns)
    for index, row in enumerate(rows):
        lines += _draw_row(row, columns, rule, blank=index > 1 and spaced)
        if index == 0:
            lines.append(Line((Segment("─┼─".join("─" * cells for cells in columns), rule),)))
    return lines


def fit_columns(natural: list[int], room: int) -> list[int]:
    """Column widths within ``room`` cells: what is wider than an equal share gives way first."""
    if sum(natural) <= room:
        return natural
    columns = [0] * len(natural)
    left, open_columns = room, sorted(range(len(natural)), key=natural.__getitem__)
    while open_columns:
        share = left // len(open_columns)
        at = open_columns.pop(0)
        columns[at] = max(_SLIMMEST, min(natural[at], share))
        left -= columns[at]
    return columns


def _cells(runs: Sequence[Run]) -> int:
    return max((cell_len(line) for line in "".join(text for text, _ in runs).split("\n")), default=0)


def _tall(rows: Sequence[Sequence[Cell]], columns: Sequence[int]) -> bool:
    """Whether some row takes several lines, so that rows need a blank line between them."""
    return any(_cells(runs) > columns[at] for row in rows for at, (runs, _) in enumerate(row))


def _draw_row(row: Sequence[Cell], columns: Sequence[int], rule: Style, *, blank: bool) -> list[Line]:
    cells = [wrap(row[at][0], columns[at]) if at < len(row) else [Line(())] for at in range(len(columns))]
    lines = [Line(tuple(_between(columns, rule)))] if blank else []
    for number in range(max(map(len, cells))):
        segments: list[Segment] = []
        for at, cell in enumerate(cells):
            if at:
                segments.append(Segment(_BETWEEN, rule))
            line = cell[number] if number < len(cell) else Line(())
            free = columns[at] - line.width
            align = row[at][1] if at < len(row) else ""
            left = free if align == "right" else free // 2 if align == "center" else 0
            segments += [spaces(left), *line.segments, spaces(free - left if at < len(columns) - 1 else 0)]
        lines.append(Line(tuple(segment for segment in segments if segment.text)))
    return lines


def _draw_records(rows: Sequence[Sequence[Cell]], width: int, rule: Style) -> list[Line]:
    """A table with more columns than there is room for: each row as a list of "head: value"."""
    lines: list[Line] = []
    for row in rows[1:] or rows:
        if lines:
            lines.append(Line((Segment("─" * min(width, 12), rule),)))
        for head, (runs, _) in zip(rows[0], row, strict=False):
            lines += wrap([*head[0], (": ", rule), *runs] if rows[1:] else runs, width)
    return lines


def _between(columns: Sequence[int], rule: Style) -> list[Segment]:
    """A row of nothing but the lines between columns."""
    segments: list[Segment] = []
    for at, cells in enumerate(columns[:-1]):
        segments.append(Segment(" " * cells + _BETWEEN if at < len(columns) else "", rule))
    return segments
