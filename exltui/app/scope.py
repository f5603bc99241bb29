"""The microscope's table: tokens as rows, the stages of the sampler as columns, each with what it left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from textual.content import Content

from exltui.app import figures
from exltui.app.widgets.bar import bar
from exltui.protocol import Explained, StageOf
from exltui.text import visible

COLUMN = 9  # cells of a stage
NAMES = {
    "raw": "model",
    "temperature": "temper.",
    "dynamic_temperature": "dynamic",
    "top_n_sigma": "n-sigma",
}


def shown(text: str) -> str:
    """A token's text with its blanks to be seen."""
    return f"“{visible(text).replace(chr(10), '⏎')}”"


def columns(count: int, width: int) -> int:
    """How many of ``count`` stages have room beside the tokens."""
    return max(1, min(count, (width - _token_width(width)) // COLUMN))


def _token_width(width: int) -> int:
    return 24 if width >= 100 else 16


def scope_lines(explained: Explained, name: Callable[[int], str], first: int, width: int, height: int) -> list[Content]:
    """The table from stage ``first`` on. ``name`` gives the text of a token."""
    room = columns(len(explained.stages), width)
    stages = explained.stages[first : first + room]
    margin = _token_width(width)
    bars = min(20, width - margin - COLUMN * len(stages) - 2)
    last = explained.stages[-1]
    before = [None, *explained.stages][first : first + len(stages)]
    idle = [former is not None and former.probabilities == stage.probabilities for former, stage in zip(before, stages, strict=True)]
    lines = [
        _row(_lead(first, margin), [NAMES.get(stage.name, stage.name.replace("_", "-")) for stage in stages], idle, "bold"),
        _row("  tokens left".ljust(margin), [figures.count(stage.left) for stage in stages], idle, "$text-muted"),
        _row("  removed".ljust(margin), [_removed(stage) for stage in stages], idle, "$text-muted"),
        Content(""),
    ]
    order = sorted(range(len(explained.ids)), key=lambda i: (-last.probabilities[i], -explained.stages[0].probabilities[i]))
    for i in order[: max(1, height - len(lines))]:
        id = explained.ids[i]
        mark = "● " if id == explained.token else "  "
        label = _fitted(mark + shown(name(id)), margin)
        cells = [_share(stage.probabilities[i]) for stage in stages]
        tail = [Content("  "), bar(last.probabilities[i], bars)] if bars >= 4 else []
        lines.append(Content.assemble(_row(label, cells, idle, "bold" if id == explained.token else ""), *tail))
    return lines


def _lead(first: int, width: int) -> str:
    return (f"  ◂ {first} before" if first else "").ljust(width)


def _row(label: str, cells: Sequence[str], idle: Sequence[bool], style: str) -> Content:
    """A stage that changed nothing is written faintly."""
    parts = [(cell.rjust(COLUMN), "$text-disabled" if same else style) for cell, same in zip(cells, idle, strict=True)]
    return Content.assemble((label, style), *parts)


def _removed(stage: StageOf) -> str:
    return figures.DASH if not stage.removed else f"{stage.removed:.1%}"


def _share(probability: float) -> str:
    if not probability:
        return "·"
    return f"{probability:.1%}" if probability >= 0.0005 else f"{probability:.0e}"


def _fitted(text: str, width: int) -> str:
    while cell_len(text) > width - 1:
        text = text[:-2] + "…" if len(text) > 1 else ""
    return text + " " * (width - cell_len(text))
