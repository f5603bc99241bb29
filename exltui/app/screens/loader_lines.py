"""The lines of the loader: a model, a plan of its memory, the progress of a load or a download."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from textual.content import Content

from exltui.app import figures
from exltui.app.library import Transfer
from exltui.app.observed import Observed
from exltui.app.widgets.bar import bar, segments, spread
from exltui.models.catalog import ModelInfo
from exltui.models.plan import plan
from exltui.protocol import DeviceMeter, LoadOptions
from exltui.text import one_line


def searchable(model: ModelInfo) -> str:
    """What a search looks at: the name, the architecture, the format."""
    return f"{model.name} {model.architecture} {format_name(model)}".lower()


def changed_options(options: LoadOptions) -> str:
    """The options other than the context that are not the defaults, in a line."""
    plain = LoadOptions()
    names = [field.name for field in dataclasses.fields(options) if field.name != "length"]
    return " · ".join(f"{name.replace('_', ' ')} {value}" for name in names if (value := getattr(options, name)) != getattr(plain, name))


def device_for(observed: Observed, wanted: str | None) -> DeviceMeter | None:
    """The device that a load would go to, as its driver reports it."""
    devices = observed.meter.devices if observed.meter else ()
    gpus = [device for device in devices if device.kind != "cpu"]
    if wanted == "cpu" or not gpus:
        return next((device for device in devices if device.kind == "cpu"), None)
    number = int(wanted.partition(":")[2]) if wanted and wanted.partition(":")[2].isdecimal() else 0
    return gpus[number] if number < len(gpus) else None


def plan_lines(model: ModelInfo, options: LoadOptions, observed: Observed, width: int) -> list[Content]:
    """The memory that a load would need as a bar: weights, cache, buffers; what others hold; and the verdict."""
    device = device_for(observed, options.device)
    total, used = (device.memory_total, device.memory_used) if device else (None, None)
    own = ((device.weights or 0) + (device.cache or 0)) if device else 0  # given back before the next load
    others = max(0, used - own) if used is not None else None
    free = total - others if total is not None and others is not None else None
    found = plan(model.path, model.size, model.context, options, free)
    if found is None:
        return [Content.styled("Its config.json does not say how large its cache is.", "$text-muted")]
    parts = Content.assemble(
        ("weights ", "$primary"), figures.size(found.weights), ("  cache ", "$secondary"), figures.size(found.cache),
        ("  buffers ", "$accent"), figures.size(found.buffers), ("  of ", "$text-muted"), figures.size(free), (" free", "$text-muted"),
    )  # fmt: skip
    if free is None or total is None:
        return [parts]
    shares = [(part / total, style) for part, style in ((others or 0, "$text-muted"), (found.weights, "$primary"))]
    shares += [(found.cache / total, "$secondary"), (found.buffers / total, "$accent")]
    verdict = Content.styled("fits", "$success") if found.fits else Content.styled(f"{figures.size(found.total - free)} too much", "$error")
    more = (
        ""
        if found.longest is None
        else f"at most {min(found.longest, model.context or found.longest):,} tokens of context fit"
        if found.longest
        else ""
    )
    right = Content.assemble((f"{more} · " if more and width >= 110 else "", "$text-muted"), verdict)
    return [segments(shares, width), spread(parts, Content.assemble(" ", right), width)]


def format_name(model: ModelInfo) -> str:
    """The weight format, with its bits where they say more: ``exl2 4.0``."""
    if model.problem or not model.format:
        return ""
    return f"{model.format} {model.bpw:.1f}" if model.format in ("exl2", "gptq") and model.bpw else model.format


def layer_bits(layers: Sequence[float]) -> str:
    """The bits of each layer, from the first to the last, as a line of bars; as many layers share a bar as there must."""
    groups = min(len(layers), 16)
    means = [layers[at * len(layers) // groups : (at + 1) * len(layers) // groups] for at in range(groups)]
    return f"{min(layers):.1f}-{max(layers):.1f} {figures.spark([sum(each) / len(each) for each in means], groups, max(layers))}"


def model_lines(model: ModelInfo, observed: Observed, now: float) -> list[Content]:
    """The details of one model."""
    lines = [Content.styled(one_line(model.name), "bold $primary"), Content("")]
    if model.problem:
        return [*lines, Content.styled(model.problem, "$error"), Content(""), Content.styled(str(model.path), "$text-muted")]
    bits = f"{model.bpw:.2f} bits a weight" if model.bpw else figures.DASH
    rows = [
        ("architecture", one_line(model.architecture or figures.DASH)),
        ("format", f"{model.format or figures.DASH}, {bits}"),
        *([("by layer", layer_bits(model.layers))] if max(model.layers, default=0) - min(model.layers, default=0) > 0.05 else []),
        ("parameters", figures.count(model.parameters)),
        ("on disk", figures.size(model.size)),
        ("context", f"{figures.count(model.context)} tokens"),
        ("template", "its own" if model.has_template else "none: a named one is used"),
    ]
    if model.used is not None:
        rows.append(("last used", figures.ago(model.used, now)))
    for adapter in model.adapters:
        what = adapter.problem or f"rank {adapter.rank}, {', '.join(adapter.targets)}, {figures.size(adapter.size)}"
        rows.append(("adapter", one_line(f"{adapter.name}: {what}")))
    loaded = observed.loaded
    if loaded is not None and loaded.model_dir == str(model.path):
        rows += [
            ("", ""),
            ("on", loaded.device),
            ("weights", figures.size(loaded.weight_bytes)),
            ("cache", f"{figures.size(loaded.cache_bytes)} for {loaded.context:,} tokens"),
            ("loaded in", figures.duration(loaded.seconds)),
        ]
    lines += [Content.assemble((f"{name:<14}", "$text-muted"), value) for name, value in rows]
    return [*lines, Content(""), Content.styled(one_line(str(model.path)), "$text-muted")]


def empty_lines(folders: Sequence[str]) -> list[Content]:
    """What to do when there is no model."""
    lines = [
        Content("No model was found in"),
        *(Content.styled(f"  {one_line(folder)}", "$accent") for folder in folders),
        Content(""),
    ]
    return [*lines, Content("G gets one by name; another folder can be named in the settings file or with --models-dir.")]


def loading_lines(observed: Observed, width: int) -> list[Content]:
    """The progress of a load: what, how far, how fast, how long still."""
    loading = observed.loading
    if loading is None:
        return []
    name = one_line(loading.model_dir.rstrip("/").rpartition("/")[2])
    done, total = (
        (figures.size(loading.done), figures.size(loading.total)) if loading.unit == "B" else (str(loading.done), str(loading.total))
    )
    pieces = [f"{done} of {total}" if loading.total else ""]
    if loading.rate and loading.unit == "B":
        pieces.append(f"{figures.size(loading.rate)}/s")
    if loading.seconds_left is not None and loading.total:
        pieces.append(f"{figures.duration(loading.seconds_left)} left")
    right = Content.styled(" · ".join(piece for piece in pieces if piece), "$text-muted")
    return [
        spread(Content.assemble((name, "bold"), f"  {figures.stage(loading.stage)}"), right, width),
        bar(loading.fraction, width),
        Content.styled("Esc stops it · Ctrl+L leaves it running and goes back", "$text-muted"),
    ]


def transfer_lines(transfer: Transfer, width: int) -> list[Content]:
    """The progress of a download, or how it ended."""
    if transfer.error:
        return [
            Content.styled(transfer.error, "$error"),
            *([Content.styled(transfer.hint, "$text-muted")] if transfer.hint else []),
        ]
    pieces = [f"{figures.size(transfer.done)} of {figures.size(transfer.total)}" if transfer.total else figures.size(transfer.done)]
    if transfer.rate:
        pieces.append(f"{figures.size(transfer.rate)}/s")
        if transfer.total:
            pieces.append(f"{figures.duration((transfer.total - transfer.done) / transfer.rate)} left")
    right = Content.styled(" · ".join(pieces), "$text-muted")
    return [
        spread(Content.assemble((one_line(transfer.name), "bold"), f"  {transfer.stage}"), right, width),
        bar(transfer.done / transfer.total if transfer.total else None, width, "$accent"),
        Content.styled("Esc stops it · Ctrl+L leaves it running and goes back", "$text-muted"),
    ]


def wrapped(text: str) -> list[Content]:
    return [Content(line) for line in text.split("\n")]
