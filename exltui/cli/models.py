"""``exltui models``: list, get, info, rm."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from exltui import paths
from exltui.adapter import AdapterInfo
from exltui.cli.options import load_options, model_folders
from exltui.cli.output import ProgressLine, print_json, size
from exltui.errors import ExltuiError, ModelError
from exltui.models.catalog import PARTIAL, ModelInfo, directory_name, find_adapters, find_models, read_model, resolve
from exltui.text import one_line


def show_list(options: argparse.Namespace) -> int:
    """The models that were found, one a line."""
    folders = model_folders(options)
    models, adapters = find_models(folders), find_adapters(folders)
    if options.json:
        every = [adapter_row(adapter) for adapter in adapters]
        print_json({"folders": [str(folder) for folder in folders], "models": [describe(model) for model in models], "adapters": every})
        return 0
    if not models:
        print(f"no models in {' or '.join(str(folder) for folder in folders)}")
        print("exltui models get smollm2-135m fetches a small one (93 MB)")
        return 0
    wide = max(len(one_line(model.name, 60)) for model in models)
    print(f"{'name':<{wide}}  format   bits    size  context  parameters")
    for model in models:
        name = f"{one_line(model.name, 60):<{wide}}"
        if model.problem:
            print(f"{name}  broken: {model.problem}")
        else:
            bits = f"{model.bpw:.2f}" if model.bpw else "-"
            context = f"{model.context:,}" if model.context else "-"
            print(f"{name}  {model.format:<6}  {bits:>5}  {size(model.size):>6}  {context:>7}  {count(model.parameters):>10}")
    _print_adapters(adapters)
    return 0


def adapter_row(adapter: AdapterInfo) -> dict[str, Any]:
    """The fields of ``adapter`` as JSON has them."""
    names = ("name", "rank", "targets", "size", "base", "problem")
    return {"path": str(adapter.path), **{name: getattr(adapter, name) for name in names}}


def _print_adapters(adapters: list[AdapterInfo]) -> None:
    for adapter in adapters:
        name = one_line(adapter.name, 60)
        if adapter.problem:
            print(f"adapter {name}  broken: {one_line(adapter.problem)}")
        else:
            print(f"adapter {name}  rank {adapter.rank}  {one_line(', '.join(adapter.targets))}  {size(adapter.size)}")


def describe(model: ModelInfo) -> dict[str, Any]:
    """The fields of ``model`` as JSON has them."""
    return {**dataclasses.asdict(model), "path": str(model.path)}


def count(number: int | None) -> str:
    """135 M, 7.2 B."""
    if not number:
        return "-"
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.0f} M"


def get(options: argparse.Namespace) -> int:
    """Fetch a model into the first models folder."""
    folder = model_folders(options)[0] if getattr(options, "models_dir", None) else paths.models_dir()
    stopped, line = threading.Event(), ProgressLine()
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.set())  # the download tidies up, then says that it stopped
    try:
        path = _fetch(options.name, folder, line, stopped)
    finally:
        signal.signal(signal.SIGINT, before)
        line.end()
    model = read_model(path)
    if options.json:
        print_json(describe(model))
    else:
        print(f"{model.name} is in {path}")
    return 0


def _fetch(name: str, folder: Path, line: ProgressLine, stopped: threading.Event) -> Path:
    from exltui.models import hub, starter  # the converter's numpy takes time to import

    if name == starter.NAME:
        return starter.get_starter(folder, line, stopped.is_set)
    return hub.get_from_hub(name, folder, line, stopped.is_set)


def info(options: argparse.Namespace) -> int:
    """All that is known about one model without loading it."""
    folders = model_folders(options)
    from exltui.engine.model.inspect import inspect

    model = read_model(resolve(options.name, folders))
    more = inspect(model.path, load_options(options))
    if options.json:
        print_json({**describe(model), "details": more})
    if model.problem:
        ours = model.path.parent in folders
        usual = f"exltui models rm {model.name} removes it; then get it again" if ours else "is it a model's directory?"
        raise ModelError(model.problem, next((why.partition("; ")[2] for why in more["refused"] if "writes tokenizer.json" in why), usual))
    if options.json:
        return 0 if not more["refused"] else 1
    rows = {
        "name": one_line(model.name),
        "path": one_line(str(model.path)),
        "architecture": one_line(model.architecture),
        "format": f"{model.format}, {model.bpw:.2f} bits per weight" if model.bpw else model.format,
        "parameters": f"{more.get('parameters', model.parameters) or 0:,}",
        "size": size(model.size),
        "context": f"{model.context:,} tokens" if model.context else "-",
        "chat template": "yes" if model.has_template else "no: a format is chosen by its vocabulary",
        **_details(more),
    }
    for key, value in rows.items():
        print(f"{key:<14} {value}")
    if more["refused"]:
        raise ModelError(f"{model.name} cannot be run: {one_line(more['refused'][0])}")
    return 0


def _details(more: dict[str, Any]) -> dict[str, str]:
    """Rows for people of what ``inspect`` found."""
    rows = {}
    if "layers" in more:
        heads = ", ".join(f"{h} query and {g} key/value heads of {d}" for h, g, d in more["heads"])
        rows["shape"] = f"{more['layers']} layers of {more['hidden']:,}, {heads}, vocabulary {more['vocabulary']:,}"
    if "experts" in more:
        experts = more["experts"]
        shared = " and one that all take" if experts["shared"] else ""
        rows["experts"] = f"{experts['experts']} in each of {experts['layers']} layers, {experts['of a token']} a token{shared}"
    if "bits" in more:
        rows["bits"] = ", ".join(f"{kind} {bits:g}" for kind, bits in more["bits"].items())
    for index, rope in enumerate(more.get("rope", [])):
        rows["positions" if not index else f"positions {index + 1}"] = _positions(rope)
    if "loaded" in more:
        rows["loaded with"] = f"{more['loaded']:,} tokens" + "".join(f"; {note}" for note in more["notes"])
    if "windows" in more:
        rows["windows"] = ", ".join(
            f"{count} layers {int(w):,}" if int(w) else f"{count} layers all" for w, count in more["windows"].items()
        )
    if "eos" in more:
        rows["ends at"] = ", ".join(f"{one_line(token['piece'])} ({token['id']})" for token in more["eos"]) or "-"
        bos = more["bos"]
        rows["begins with"] = f"{one_line(bos['piece'])} ({bos['id']}){'' if more['adds_bos'] else ', not by itself'}" if bos else "-"
        shown = more["special"][:12]
        rest = f" and {len(more['special']) - 12} more" if len(more["special"]) > 12 else ""
        rows["special"] = one_line(" ".join(shown)) + rest
    return rows


def _positions(rope: dict[str, Any]) -> str:
    if rope["kind"] == "none":
        return f"none from RoPE in {rope['layers']} layers"
    scaling = rope.get("scaling")
    values = {key: value for key, value in scaling.items() if key != "kind" and not isinstance(value, (list, tuple))} if scaling else {}
    stretched = f" (NTK alpha {rope['alpha']:g})" if "alpha" in rope else ""
    stretched += f", {scaling['kind']} ({', '.join(f'{key} {value}' for key, value in values.items())})" if scaling else ""
    if "magnitude" in rope and rope["magnitude"] != 1.0:
        stretched += f", cos and sin times {rope['magnitude']:.4g}"
    return f"RoPE over {rope['width']}, theta {rope['theta']:,g}{stretched}, in {rope['layers']} layers"


def remove(options: argparse.Namespace) -> int:
    """Remove a model's directory from a models folder, and what an interrupted download left of it."""
    from exltui.models.transfer import remove_tree

    folders = model_folders(options)
    partials = [path for folder in folders if (path := folder / (directory_name(options.name) + PARTIAL)).is_dir()]
    try:
        path = resolve(options.name, folders)
    except ModelError:
        if not partials:
            raise
    else:
        if not any(path.absolute().is_relative_to(folder.absolute()) and path != folder for folder in folders):
            raise ModelError(f"{path} is in none of the models folders, so it is not removed here", "remove the directory yourself")
        partials.insert(0, path)
    freed = sum(file.stat().st_size for path in partials for file in path.rglob("*") if file.is_file())
    if not options.yes:
        _confirm(f"remove {', '.join(str(path) for path in partials)} ({size(freed)})?")
    for path in partials:
        try:
            remove_tree(path)
        except OSError as error:
            raise ModelError(f"{path} cannot be removed: {error.strerror or error}", "check its permissions") from error
    if options.json:
        print_json({"removed": [str(path) for path in partials], "bytes": freed})
    else:
        print(f"removed {', '.join(str(path) for path in partials)} ({size(freed)})")
    return 0


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise ExltuiError("whoever removes a model has to confirm it, and there is no terminal", "say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt
