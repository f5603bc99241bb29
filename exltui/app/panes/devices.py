"""The devices pane: what each GPU (or the CPU) holds and does, as the last meter event says."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget

from exltui.app import figures
from exltui.app.observed import Observed
from exltui.app.widgets.bar import bar, segments, spread
from exltui.protocol import DeviceMeter
from exltui.text import one_line


def device_lines(index: int, device: DeviceMeter, history: Iterable[float | None], width: int) -> list[Content]:
    """One device as three or four lines of ``width`` cells."""
    total, used = device.memory_total, device.memory_used
    own = [(device.weights, "$primary"), (device.cache, "$secondary")]
    mine = sum(share or 0 for share, _ in own)
    others = max(0, used - mine) if used is not None else 0
    shares = [((share or 0) / total, style) for share, style in own] if total else []
    if total:
        shares.append((others / total, "$text-muted"))
    name = Content.assemble((f"{index} " if device.kind != "cpu" else "", "$accent"), (one_line(device.name), "bold"))
    memory = f"{figures.gigabytes(used)} / {figures.gigabytes(total)} GB"
    owners = Content.assemble(
        ("w ", "$primary"), f"{figures.gigabytes(device.weights)}  ", ("c ", "$secondary"), f"{figures.gigabytes(device.cache)}  ",
        ("o ", "$text-muted"), figures.gigabytes(others if used is not None else None), (" GB", "$text-muted"),
    )  # fmt: skip
    figures_now = [f"{figures.DASH if device.utilisation is None else f'{device.utilisation:.0f}'}%".rjust(4)]
    if device.temperature is not None:
        figures_now.append(f"{device.temperature:.0f}°C")
    if device.power is not None:
        figures_now.append(f"{device.power:.0f} W")
    load = Content(" ".join(figures_now))
    room = width - load.cell_length - 1
    return [
        spread(name, Content(""), width),
        segments(shares, width),
        spread(Content(memory), Content.styled(figures.percent(used, total), "$text-muted"), width),
        owners,
        Content.assemble(load, " ", (figures.spark(history, room, 100), "$success")),
    ]


def engine_lines(observed: Observed, width: int) -> list[Content]:
    """The cache's pages and the speed of the last minute."""
    meter, loaded = observed.meter, observed.loaded
    if meter is None or loaded is None:
        return []
    used, total = meter.pages_used, meter.pages_total
    pages = f" {used}/{total}" if total else f" {figures.DASH}"
    speed = f" {figures.rate(meter.decode_rate):>6}/s"
    return [
        Content.assemble(("pages  ", "$text-muted"), bar(used / total if total else None, width - 7 - len(pages), "$secondary"), pages),
        Content.assemble(
            ("decode ", "$text-muted"), (figures.spark(observed.speeds, width - 7 - len(speed)), "$accent"), speed
        ),
    ]  # fmt: skip


class DevicesPane(Widget, can_focus=True):
    """Memory by owner, utilisation, temperature and power of each device. A dash stands for what the driver does not tell."""

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

    def render(self) -> Content:
        return Content("\n").join(self._shown)

    def _compose_lines(self) -> list[Content]:
        width = self.content_size.width
        observed = self._observed
        if width <= 8:
            return []
        if observed.meter is None:
            return [Content.styled("Waiting for a reading" if observed.host else "The engine is starting", "$text-muted")]
        blocks = [
            device_lines(index, device, observed.utilisation.get(index, ()), width) for index, device in enumerate(observed.meter.devices)
        ]
        blocks.append(engine_lines(observed, width))
        lines: list[Content] = []
        for block in blocks:
            lines += ([Content("")] if lines and block else []) + block
        return lines
