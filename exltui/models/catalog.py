"""The models on this machine: what each directory holds, read off its JSON files and tensor headers. No weight is touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exltui.adapter import CONFIG, AdapterInfo, describe_adapter, is_adapter
from exltui.checkpoint import TensorInfo, read_checkpoint
from exltui.errors import CheckpointError, ModelError
from exltui.text import one_line

PARTIAL = ".partial"  # the ending of directories that are still being written
MARKS = ("config.json", "tokenizer.json", "tokenizer_config.json")
CONTEXT_KEYS = ("max_sequence_length", "model_max_length", "max_position_embeddings", "max_seq_len", "n_positions")
PLAIN = {"F16": "f16", "BF16": "bf16", "F32": "f32", "F8_E4M3": "fp8"}


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """A LoRA adapter as a list shows it."""

    name: str
    rank: int
    targets: tuple[str, ...]
    size: int  # bytes
    problem: str | None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model directory. ``problem`` is one sentence on why it cannot be loaded, or None; the figures are then what could be found."""

    name: str  # the directory's name, below a models folder its relative path
    path: Path
    architecture: str = ""
    format: str = ""  # "f16", "bf16", "f32", "exl2", "gptq"
    bpw: float | None = None  # bits of a linear weight, on average over the layers
    size: int = 0  # bytes of all its files
    context: int | None = None  # tokens that it was trained for
    parameters: int | None = None
    has_template: bool = False
    problem: str | None = None
    adapters: tuple[AdapterRow, ...] = ()  # LoRA adapters that lie beside it
    used: float | None = None  # when it was loaded last, in seconds since 1970, as far as a list knows
    layers: tuple[float, ...] = ()  # bits of a linear weight by layer


_known: dict[Path, tuple[tuple[tuple[str, int, int], ...], ModelInfo]] = {}  # by directory: its files when it was read, and what it is


def find_models(folders: Sequence[Path]) -> list[ModelInfo]:
    """The models in ``folders``, sorted by name. A model is a directory in one of them, or one level further down. Broken ones are listed
    too, with what is wrong. Folders that do not exist hold none; the first of two models of one name is the one that is meant.
    """
    found: dict[str, ModelInfo] = {}
    for folder in folders:
        for name, path in _directories(folder):
            if name not in found:
                found[name] = read_model(path, name)
    beside = tuple(AdapterRow(a.name, a.rank, a.targets, a.size, a.problem) for a in find_adapters(folders))
    models = [replace(info, adapters=beside) if beside else info for info in found.values()]
    return sorted(models, key=lambda info: info.name.lower())


def resolve(name: str, folders: Sequence[Path]) -> Path:
    """The directory of a model that is named as ``find_models`` names it, as the hub does (OWNER/REPO), or by its path.

    Raises ModelError that says which models there are.
    """
    candidates = [folder / part for folder in folders for part in (name, directory_name(name)) if name and ".." not in Path(name).parts]
    for path in [*candidates, Path(name).expanduser()]:
        if name and path.is_dir() and path not in folders:
            return path
    names = [info.name for info in find_models(folders)]
    folded = [other for other in names if other.lower() == name.lower()]
    if len(folded) == 1:
        return resolve(folded[0], folders)
    if not names:
        where = " or ".join(str(folder) for folder in folders)
        raise ModelError(f"there is no model {name!r}: no models in {where}", "exltui models get smollm2-135m fetches a small one")
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    raise ModelError(
        f"there is no model {name!r}; there are {', '.join(one_line(other) for other in names[:8])}{more}",
        "exltui models get NAME fetches one; a directory can be given by its path",
    )


def find_adapters(folders: Sequence[Path]) -> list[AdapterInfo]:
    """The LoRA adapters beside the models: directories in ``folders``, one level further down, or within a model's. Sorted by name."""
    found: dict[str, AdapterInfo] = {}
    for folder in folders:
        for path in _subdirectories(folder):
            for name, place in ((path.name, path), *((f"{path.name}/{below.name}", below) for below in _subdirectories(path))):
                if is_adapter(place) and name not in found:
                    found[name] = describe_adapter(place, name)
    return sorted(found.values(), key=lambda info: info.name.lower())


def resolve_adapter(use: str, folders: Sequence[Path]) -> str:
    """``"NAME"``, ``"DIR"``, or either with ``":SCALE"`` -> the same with the adapter's directory. Raises ModelError."""
    head, colon, tail = use.rpartition(":")
    name, scale = (head, tail) if colon and _is_number(tail) else (use, "")
    places = [Path(name).expanduser(), *(folder / name for folder in folders if ".." not in Path(name).parts)]
    path = next((place for place in places if is_adapter(place)), None)
    if path is None:
        there = ", ".join(info.name for info in find_adapters(folders)[:8])
        raise ModelError(f"there is no LoRA adapter {name!r}", f"there are {there}" if there else "give a directory that PEFT saved")
    return f"{path}:{scale}" if scale else f"{path}:1"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def directory_name(name: str) -> str:
    """``OWNER/REPO@REVISION`` -> ``OWNER_REPO_REVISION``."""
    return name.replace("/", "_").replace("@", "_")


def read_model(path: Path, name: str = "") -> ModelInfo:
    """What the directory ``path`` holds. Never raises an ExltuiError: what is wrong stands in ``problem``."""
    name = name or path.name
    try:
        facts = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
        stamp = tuple((file_name, fact.st_size, fact.st_mtime_ns) for file_name, fact in facts)
    except OSError as error:
        return ModelInfo(name, path, problem=f"{name}: cannot be read: {error.strerror or error}")
    known = _known.get(path)
    if known is None or known[0] != stamp or known[1].name != name:
        known = (stamp, _read(path, name, sum(size for _, size, _ in stamp)))
        _known[path] = known
    return known[1]


def _directories(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of what look like models in ``folder``; the folder itself counts if it is one."""
    if _looks_like_model(folder):
        yield folder.name, folder
        return
    for path in _subdirectories(folder):
        if _looks_like_model(path):
            yield path.name, path
        else:
            yield from ((f"{path.name}/{below.name}", below) for below in _subdirectories(path) if _looks_like_model(below))


def _subdirectories(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.name.endswith(PARTIAL))
    except OSError:
        return []


def _looks_like_model(path: Path) -> bool:
    try:
        names = [file.name for file in path.iterdir()]
    except OSError:
        return False
    return CONFIG not in names and any(name in MARKS or name.endswith((".safetensors", ".gguf")) for name in names)


def _read(path: Path, name: str, size: int) -> ModelInfo:
    config: dict[str, Any] = {}
    try:
        config = _config(path, name)
        if not (path / "tokenizer.json").is_file():
            also = "a SentencePiece tokenizer.model but " if (path / "tokenizer.model").exists() else ""
            raise ModelError(f"{name}: there is {also}no tokenizer.json")
        tensors = read_checkpoint(path)
        kind, bpw, parameters, layers = _figures(config, tensors)
        problem = None
    except (ModelError, CheckpointError) as error:
        kind, bpw, parameters, layers, problem = "", None, None, (), one_line(str(error))
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if problem is None and not architecture:
        problem = f"{name}: config.json names no architecture"
    context, has_template = _context(config), _has_template(path)
    return ModelInfo(name, path, architecture, kind, bpw, size, context, parameters, has_template, problem, layers=layers)


def _config(path: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{name}: there is no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: config.json cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{name}: config.json does not hold a JSON object")
    return values


def _context(config: dict[str, Any]) -> int | None:
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        for key in CONTEXT_KEYS:
            value = values.get(key)
            if isinstance(value, (int, float)) and value > 0:
                return int(value)
    return None


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file():
        return True
    try:
        values = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))


LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
FLOATS = ("F16", "BF16", "F32", "F8_E4M3")
QUANTISED = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups", "qweight", "qzeros", "scales", "g_idx")  # EXL2, GPTQ and AWQ
BESIDE = ("weight_scale", "weight_scale_inv", "input_scale")  # of FP8


def _figures(config: dict[str, Any], tensors: dict[str, TensorInfo]) -> tuple[str, float | None, int, tuple[float, ...]]:
    """(format, bits per weight of the layers, parameters, bits by layer).

    A tied head that a quantised file holds as a copy is no parameter.
    """
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = info
    kinds, parameters = set(), 0
    layers: dict[int, list[int]] = {}  # bits and weights
    method = config.get("quantization_config")
    bits = method.get("bits") if isinstance(method, dict) else None
    for module, parts in modules.items():
        kind, weights = _module(parts, bits if bits in (2, 3, 8) else 4)
        vectors = {part: info for part, info in parts.items() if len(info.shape) < 2 and part not in (*QUANTISED, *BESIDE)}
        if not (module.endswith("lm_head") and config.get("tie_word_embeddings")):
            parameters += weights + sum(info.numel for info in vectors.values() if info.dtype in FLOATS)
        if kind and (found := LAYER.search(f"{module}.")):
            kinds.add(kind)
            layer = layers.setdefault(int(found.group(1)), [0, 0])
            layer[0] += 8 * sum(info.nbytes for part, info in parts.items() if part not in vectors)
            layer[1] += weights
    known = next((kind for kind in ("exl2", "gptq", "mxfp4", "fp8", "f32", "bf16", "f16") if kind in kinds), "")
    held = [(bits, weights) for _, (bits, weights) in sorted(layers.items()) if weights]
    whole = sum(weights for _, weights in held)
    return known, sum(bits for bits, _ in held) / whole if whole else None, parameters, tuple(bits / weights for bits, weights in held)


def _module(parts: dict[str, TensorInfo], bits: int) -> tuple[str, int]:
    """(format, weights) of one module's matrices; GPTQ's have ``bits``. Some families have stacks of experts with other names."""
    if "q_weight" in parts and "q_invperm" in parts:
        return "exl2", parts["q_invperm"].numel * parts["q_weight"].shape[-1]
    if "qweight" in parts:
        return "gptq", parts["qweight"].numel * 32 // bits
    packed = [info for part, info in parts.items() if part.endswith("_blocks") and info.dtype == "U8"]
    if packed:
        return "mxfp4", 2 * sum(info.numel for info in packed) + sum(i.numel for p, i in parts.items() if p.endswith("_bias"))
    matrices = [info for part, info in parts.items() if info.dtype in FLOATS and 2 <= len(info.shape) <= 3 and part not in BESIDE]
    return (PLAIN[matrices[0].dtype], sum(info.numel for info in matrices)) if matrices else ("", 0)
