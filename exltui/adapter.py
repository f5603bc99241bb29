"""LoRA adapters as PEFT saves them: what a directory holds, without torch. The catalogue lists it, the engine loads it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exltui.checkpoint import TensorInfo, read_header
from exltui.errors import CheckpointError, ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LOW_RANK = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<part>A|B)(?:\.[^.]+)?\.weight$")
EMBEDDING = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)\.lora_embedding_(?P<part>A|B)(?:\.[^.]+)?$")
WHOLE = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?\.weight$")
REFUSED = {  # settings that change what an adapter computes, and what they are
    "use_dora": "DoRA, which changes the length of the weights too",
    "lora_bias": "a bias beside its matrices",
    "use_qalora": "QA-LoRA",
    "layer_replication": "layers that are repeated",
    "target_parameters": "matrices for stacked experts",
    "trainable_token_indices": "single rows of the embedding",
    "alora_invocation_tokens": "an activation by tokens",
}
MEND = "exltui runs plain LoRA as PEFT saves it"


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter directory. ``pairs``: module -> (A, B); ``whole``: module -> a tensor in place of the model's."""

    name: str
    path: Path
    rank: int = 0  # the largest
    targets: tuple[str, ...] = ()  # last parts of the names of the modules that it changes
    size: int = 0  # bytes
    base: str = ""  # the model that it was made for, as it says
    problem: str | None = None
    pairs: dict[str, tuple[TensorInfo, TensorInfo]] = field(default_factory=dict, repr=False)
    embeddings: dict[str, tuple[TensorInfo, TensorInfo]] = field(default_factory=dict, repr=False)
    whole: dict[str, TensorInfo] = field(default_factory=dict, repr=False)
    config: dict[str, Any] = field(default_factory=dict, repr=False)

    def digest(self) -> str:
        """Of the contents of its files. Raises OSError."""
        found = hashlib.sha256((self.path / CONFIG).read_bytes())
        with (self.path / WEIGHTS).open("rb") as stream:
            while part := stream.read(1 << 20):
                found.update(part)
        return found.hexdigest()

    def scaling(self, module: str, rank: int) -> float:
        """What B A of ``module`` is multiplied with: alpha over the rank, or over its root (rsLoRA)."""
        alpha = self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def is_adapter(directory: Path) -> bool:
    return (directory / CONFIG).is_file()


def describe_adapter(directory: Path, name: str = "") -> AdapterInfo:
    """What ``directory`` holds. Never raises an ExltuiError: what is wrong stands in ``problem``."""
    try:
        return read_adapter(directory, name)
    except (ModelError, CheckpointError) as error:
        return AdapterInfo(name or directory.name, directory, problem=str(error))


def read_adapter(directory: Path, name: str = "") -> AdapterInfo:
    """Raises ModelError for an adapter that cannot be run, CheckpointError for a damaged file."""
    name = name or directory.name
    config = _config(directory)
    tensors = _tensors(directory)
    pairs, embeddings, whole = _sorted(directory, tensors)
    ranks = [a.shape[0] for a, _ in (*pairs.values(), *embeddings.values())]
    targets = sorted({module.rpartition(".")[2] for module in (*pairs, *embeddings, *whole)})
    size = sum(info.nbytes for info in tensors.values())
    base = config.get("base_model_name_or_path")
    text = base if isinstance(base, str) else ""
    return AdapterInfo(name, directory, max(ranks, default=0), tuple(targets), size, text, None, pairs, embeddings, whole, config)


def _config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{directory}: there is no {CONFIG}, so this is not an adapter", "choose a directory that PEFT saved") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}", "download the file again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: does not hold a JSON object", "download the file again")
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise ModelError(f"{directory.name}: this is a {str(kind)[:40]} adapter, not LoRA", MEND)
    for setting, what in REFUSED.items():
        if values.get(setting):
            raise ModelError(f"{directory.name}: this adapter has {what} ({setting}), which exltui cannot run", MEND)
    patterns = values.get("alpha_pattern") or {}
    numbers = [values.get("lora_alpha", 8), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ModelError(f"{path}: lora_alpha or alpha_pattern does not hold numbers", "download the file again")
    return values


def _tensors(directory: Path) -> dict[str, TensorInfo]:
    if not (directory / WEIGHTS).is_file():
        pickled = (directory / "adapter_model.bin").exists()
        also = "; its .bin file would have to be unpickled, which runs code" if pickled else ""
        hint = "save it again with PEFT's save_pretrained, which writes safetensors" if pickled else "download the adapter again"
        raise ModelError(f"{directory.name}: there is no {WEIGHTS}{also}", hint)
    return read_header(directory / WEIGHTS)


Pairs = dict[str, tuple[TensorInfo, TensorInfo]]


def _sorted(directory: Path, tensors: dict[str, TensorInfo]) -> tuple[Pairs, Pairs, dict[str, TensorInfo]]:
    """Low-rank pairs of linear layers, those of embeddings, and whole tensors, by module. Anything else is refused."""
    halves: dict[bool, dict[str, dict[str, TensorInfo]]] = {True: {}, False: {}}
    whole: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        low = LOW_RANK.match(name) or EMBEDDING.match(name)
        if low is not None:
            of_embedding = "lora_embedding" in name
            halves[of_embedding].setdefault(low["module"], {})[low["part"]] = info
        elif (match := WHOLE.match(name)) and match["module"].rpartition(".")[2] in ("lm_head", "embed_tokens", "wte"):
            whole[match["module"]] = info
        else:
            raise ModelError(f"{directory.name}: the adapter holds {name[:100]}, which is not LoRA, an embedding or a head", MEND)
    found: list[Pairs] = []
    for of_embedding in (False, True):
        pairs: Pairs = {}
        for module, parts in halves[of_embedding].items():
            a, b = parts.get("A"), parts.get("B")
            if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
                shapes = {part: info.shape for part, info in parts.items()}
                raise ModelError(
                    f"{directory.name}: the matrices of {module} do not belong together: {shapes}", "download the adapter again"
                )
            pairs[module] = (a, b)
        found.append(pairs)
    return found[0], found[1], whole
