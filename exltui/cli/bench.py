"""``exltui bench``: how fast a model reads prompts and decodes, beside what the memory could do."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from exltui import paths
from exltui.cli.options import load_options, model_path
from exltui.cli.output import ProgressLine, print_json
from exltui.errors import DeviceError, ModelError
from exltui.protocol import LoadOptions


def run(options: argparse.Namespace) -> int:
    """Measure, a line each."""
    from exltui.engine.evaluate.speed import Plan, copy_rate, measure
    from exltui.engine.model.loading import load_model, resolve_device
    from exltui.engine.ops import bind
    from exltui.engine.run.cache import parse_cache_mode

    load = load_options(options)
    _set_threads(load)
    device = resolve_device(load.device)
    on_gpu = device.type == "cuda"
    plan = Plan(
        _numbers(options.prefill, "512,2048,8192" if on_gpu else "512"),
        _numbers(options.context, "0,4096,16384,32768" if on_gpu else "0,1024"),
        _numbers(options.batch, "1,8,32" if on_gpu else "1"),
        options.steps,
        load.chunk_size if on_gpu else min(load.chunk_size, 256),
    )
    line = ProgressLine()
    try:
        directory = _synthetic(options, line) if options.synthetic else model_path(options)
        bind(device)  # the extension and a GPU's context are no part of loading a model
        rate = copy_rate(device)
        began = time.perf_counter()
        model = load_model(directory, dataclasses.replace(load, length=plan.longest), line, lambda: False)
        seconds = time.perf_counter() - began
    finally:
        line.end()
    figures = []
    if not options.json:
        weights = f"{model.name}, {model.bits_per_weight:.2f} bits a weight"
        print(f"{weights}, cache {load.cache}, {_device_name(device)}, loaded in {seconds:.1f} s")
        print(f"a copy moves {rate / 1e9:,.1f} GB/s")
        print(f"{'':8} {'tokens':>7} {'batch':>5} {'ms':>10} {'tokens/s':>10} {'MB a step':>10} {'of copy':>8}")
    for figure in measure(model, parse_cache_mode(load.cache), plan):
        share = figure.nbytes / (figure.milliseconds / 1e3) / rate
        figures.append({**dataclasses.asdict(figure), "share_of_copy": share if figure.nbytes else None})
        if not options.json:
            size, of_copy = (f"{figure.nbytes / 1e6:,.0f}", f"{share:.0%}") if figure.nbytes else ("", "")
            row = f"{figure.what:8} {figure.tokens:>7,} {figure.batch:>5} {figure.milliseconds:>10.3f} {figure.tokens_per_second:>10,.1f}"
            print(f"{row} {size:>10} {of_copy:>8}", flush=True)
    if options.json:
        print_json(
            {
                "model": model.name,
                "device": _device_name(device),
                "cache": load.cache,
                "load_seconds": seconds,
                "copy": rate,
                "figures": figures,
            }
        )
    return 0


def _set_threads(load: LoadOptions) -> None:
    import torch

    if load.threads is not None:
        if load.threads < 1:
            raise DeviceError(f"{load.threads} threads cannot compute anything", "leave --threads out to use all cores")
        torch.set_num_threads(load.threads)


def _numbers(stated: str | None, default: str) -> tuple[int, ...]:
    text = default if stated is None else stated
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (-1,)
    if any(number < 0 for number in found):
        raise ModelError(f"{text!r} is no list of numbers", "write it as 512,2048")
    return found


def _synthetic(options: argparse.Namespace, line: ProgressLine) -> Path:
    """The directory of the synthetic model that was asked for, written if it is not there."""
    from exltui.engine.convert.synthetic import write_synthetic

    directory = paths.synthetic_dir() / f"{options.synthetic}-{options.bpw:g}bpw-h{options.head_bits}"
    if not directory.is_dir():
        write_synthetic(options.synthetic, options.bpw, options.head_bits, directory, line)
        line.end()
    return directory


def _device_name(device: object) -> str:
    import torch

    return torch.cuda.get_device_name(str(device)) if str(device).startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
