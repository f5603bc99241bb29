"""The devices pane: what each GPU (or the CPU) holds and does, and what the engine's last step and reply took."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget

from exltui.app import figures
from exltui.app.observed import JobFigures, Observed
from exltui.app.widgets.bar import bar, segments, spread
from exltui.meter import PAGE_SIGNS, StepTimes
from exltui.protocol import DeviceMeter
from exltui.text import one_line

# How the signs of PAGE_SIGNS are drawn: free, partly remembered, remembered, used by a job, shared by several.
PAGES = (("·", "$text-disabled"), ("▁", "$text-muted"), ("▄", "$secondary"), ("▇", "$primary"), ("█", "$accent"))


def device_lines(index: int, device: DeviceMeter, history: Iterable[float | None], width: int) -> list[Content]:
    """One device as five or six lines of ``width`` cells."""
    total, used = device.memory_total, device.memory_used
    own = [(device.weights, "$primary"), (device.cache, "$secondary"), (device.buffers, "$accent")]
    mine = sum(share or 0 for share, _ in own)
    others = max(0, used - mine) if used is not None else None
    shares = [((share or 0) / total, style) for share, style in own] if total else []
    if total:
        shares.append(((others or 0) / total, "$text-muted"))
    name = Content.assemble((f"{index} " if device.kind != "cpu" else "", "$accent"), (one_line(device.name), "bold"))
    memory = f"{figures.gigabytes(used)} / {figures.gigabytes(total)} GB"
    load = Content(" ".join(_now(device)))
    return [
        spread(name, Content(""), width),
        segments(shares, width),
        spread(Content(memory), Content.styled(figures.percent(used, total), "$text-muted"), width),
        *_owners(device, others, width),
        Content.assemble(load, " ", (figures.spark(history, width - load.cell_length - 1, 100), "$success")),
    ]


def _owners(device: DeviceMeter, others: int | None, width: int) -> list[Content]:
    """Who has the memory: weights, cache, buffers, others. In one line where there is room for it."""
    parts = [("w", device.weights, "$primary"), ("c", device.cache, "$secondary"), ("o", others, "$text-muted")]
    if device.buffers is not None:
        parts.insert(2, ("b", device.buffers, "$accent"))
    written = [Content.assemble((f"{sign} ", style), figures.gigabytes(value)) for sign, value, style in parts]
    line = Content.assemble(Content("  ").join(written), (" GB", "$text-muted"))
    if line.cell_length <= width:
        return [line]
    return [Content("  ").join(written[:2]), Content.assemble(Content("  ").join(written[2:]), (" GB", "$text-muted"))]


def _now(device: DeviceMeter) -> list[str]:
    """Utilisation, and temperature and power where the driver tells them."""
    found = [f"{figures.DASH if device.utilisation is None else f'{device.utilisation:.0f}'}%".rjust(4)]
    if device.temperature is not None:
        found.append(f"{device.temperature:.0f}°C")
    if device.power is not None:
        found.append(f"{device.power:.0f} W")
    return found


def engine_lines(observed: Observed, width: int) -> list[Content]:
    """The cache's pages and the speed of the last minute."""
    meter, loaded = observed.meter, observed.loaded
    if meter is None or loaded is None:
        return []
    used, total = meter.pages_used, meter.pages_total
    pages = f" {used}/{total}" if total else f" {figures.DASH}"
    speed = f" {figures.rate(meter.decode_rate):>6}/s"
    room = width - 7 - len(pages)
    strip = page_strip(meter.page_map, room) if meter.page_map else bar(used / total if total else None, room, "$secondary")
    return [
        Content.assemble(("pages  ", "$text-muted"), strip, pages),
        Content.assemble(
            ("decode ", "$text-muted"), (figures.spark(observed.speeds, width - 7 - len(speed)), "$accent"), speed
        ),
    ]  # fmt: skip


def page_strip(page_map: str, width: int) -> Content:
    """The page table in ``width`` cells: of the pages that share a cell the busiest one is shown."""
    count = len(page_map)
    cells = max(0, min(width, count))
    states = [max(PAGE_SIGNS.index(sign) for sign in page_map[at * count // cells : (at + 1) * count // cells]) for at in range(cells)]
    return Content.assemble(*(PAGES[state] for state in states), " " * (width - cells))


def step_lines(step: StepTimes | None, width: int, *, gpu: bool = False) -> list[Content]:
    """Where the time of a step went; with a ``gpu``, whether it waits for the processor."""
    if step is None:
        return []
    whole = step.host + step.model + step.sampling
    parts = ((step.model, "model", "$primary"), (step.sampling, "sampling", "$accent"), (step.host, "host", "$text-muted"))
    right = Content.styled(f"{figures.millis(whole)} · {step.steps}/s", "$text-muted")
    lines = [spread(Content("a step"), right, width), segments([(part / whole, style) for part, _, style in parts] if whole else [], width)]
    lines += [_figure(name, figures.millis(part), style, width) for part, name, style in parts]
    waits = gpu and step.host > step.model
    return [*lines, Content.styled("  the GPU waits for the processor", "$warning")] if waits else lines


def job_lines(job: JobFigures | None, width: int) -> list[Content]:
    """What the last reply took."""
    if job is None:
        return []
    lines = [
        ("first token", figures.duration(job.first_token_seconds)),
        ("prefill", f"{figures.rate(job.prefill_rate)}/s"),
        ("decode", f"{figures.rate(job.decode_rate)}/s"),
        ("cached", f"{figures.count(job.cached)} of {figures.count(job.prompt_tokens)}"),
    ]
    if job.stats is not None and (guessed := job.stats.accepted_drafts + job.stats.rejected_drafts):
        lines.append(("drafts", f"{job.stats.accepted_drafts / guessed:.0%} of {guessed:,} held"))
    return [Content.styled("last reply", ""), *(_figure(name, value, "$text-muted", width) for name, value in lines)]


def _figure(name: str, value: str, style: str, width: int) -> Content:
    return spread(Content.styled(f"  {name}", style), Content(value), width)


class DevicesPane(Widget, can_focus=True):
    """Memory by owner, utilisation, temperature and power of each device. A dash stands for what the driver does not tell.

    With the focus it also says where the time of a step went and what the last reply took.
    """

    BORDER_TITLE = "Devices"

    def __init__(self, observed: Observed, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._observed = observed
        self._shown: list[Content] = []

    def show(self) -> None:
        """Take the newest figures; repaints only the lines that changed."""
        before, self._shown = self._shown, self._compose_lines()
        if len(before) != len(self._shown):
            self.refresh(layout=True)  # the pane is as high as what it says
            return
        for y, (old, new) in enumerate(zip(before, self._shown, strict=True)):
            if not old.is_same(new):
                self.refresh(Region(0, y + self.gutter.top, self.size.width, 1))

    def on_resize(self) -> None:
        self._shown = self._compose_lines()
        self.refresh()

    def watch_has_focus(self, has_focus: bool) -> None:
        super().watch_has_focus(has_focus)
        if self.is_attached:
            self.show()

    def render(self) -> Content:
        return Content("\n").join(self._shown)

    def _compose_lines(self) -> list[Content]:
        width, observed = self.content_size.width, self._observed
        if width <= 8:
            return []
        if observed.meter is None:
            return [Content.styled("No reading yet", "$text-muted")]
        blocks = [
            device_lines(index, device, observed.utilisation.get(index, ()), width) for index, device in enumerate(observed.meter.devices)
        ]
        blocks.append(engine_lines(observed, width))
        if self.has_focus:
            blocks += [
                step_lines(observed.step, width, gpu=observed.loaded is not None and observed.loaded.device != "cpu"),
                job_lines(observed.job, width),
            ]
        lines: list[Content] = []
        for block in blocks:
            lines += ([Content("")] if lines and block else []) + block
        return lines
