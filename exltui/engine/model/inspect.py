"""What a model directory holds and how it would be run, from its JSON files and tensor headers: no weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exltui.engine.model.config import Config
from exltui.engine.model.families import read_spec
from exltui.engine.model.loading import loaded_context, open_checkpoint, require_weights
from exltui.engine.model.positions import check_context, with_overrides
from exltui.engine.model.spec import ArchSpec, LinearSpec, MoeSpec
from exltui.engine.model.tensors import Checkpoint
from exltui.engine.ops.rope import RopeSpec
from exltui.errors import ExltuiError
from exltui.protocol import LoadOptions
from exltui.tokenizer import Tokenizer


def inspect(directory: Path, options: LoadOptions = LoadOptions()) -> dict[str, Any]:  # noqa: B008  (it is frozen)
    """Plain values: ``architecture``, ``layers``, ``hidden``, ``heads``, ``experts``, ``bits``, ``parameters``, ``context``, ``rope``,
    ``loaded``, ``notes``, ``windows``, ``bos``, ``eos``, ``special``, ``template``, ``refused``.

    RoPE is what ``options`` make of it, for the ``loaded`` context; ``notes`` are what loading would say about that. What cannot be found
    out is left out; ``refused`` says why, a sentence each.
    """
    found: dict[str, Any] = {"refused": []}
    try:
        config = Config.read(directory)
        spec = with_overrides(read_spec(config), options)
        context = loaded_context(spec, options)
        found |= _shape(spec, context)
        checkpoint = open_checkpoint(directory, config, spec)
        found["bits"] = _bits(spec, checkpoint)
        found["parameters"] = _parameters(spec, checkpoint)
        require_weights(spec, checkpoint)
        found["notes"] = list(check_context(spec, context))
    except ExltuiError as error:
        found["refused"].append(f"{error}; {error.hint}" if error.hint else str(error))
    try:
        found |= _tokens(Tokenizer(directory))
    except ExltuiError as error:
        found["refused"].append(f"{error}; {error.hint}" if error.hint else str(error))
    return found


def _shape(spec: ArchSpec, context: int) -> dict[str, Any]:
    attentions = [layer.attention for layer in spec.layers]
    moes = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, MoeSpec)]
    windows = [attention.window for attention in attentions]
    found = {
        "architecture": spec.architecture,
        "layers": len(spec.layers),
        "hidden": spec.hidden,
        "vocabulary": spec.vocab,
        "heads": sorted({(a.h, a.g, a.d) for a in attentions}),
        "context": spec.trained_context,
        "loaded": context,
        "rope": _ropes([attention.rope for attention in attentions], context),
        "tied": spec.tied,
    }
    if any(windows):
        found["windows"] = {str(window): windows.count(window) for window in sorted(set(windows))}
    if moes:
        found["experts"] = {
            "layers": len(moes),
            "experts": len(moes[0].experts),
            "of a token": moes[0].top,
            "shared": moes[0].shared is not None,
        }
    return found


def _ropes(ropes: list[RopeSpec | None], context: int) -> list[dict[str, Any]]:
    """Each way in which layers know positions, and how many do so; theta after NTK, for a context of so many tokens."""
    found = []
    for rope in dict.fromkeys(ropes):
        entry: dict[str, Any] = {"layers": ropes.count(rope)}
        if rope is None:
            entry["kind"] = "none"
        else:
            entry |= {
                "kind": "rope",
                "theta": rope.base(context),
                "width": rope.width,
                "pairs": "neighbours" if rope.interleaved else "halves",
            }
            if rope.alpha != 1.0:
                entry["alpha"] = rope.alpha
            if rope.scaling is not None:
                entry["scaling"] = dataclasses.asdict(rope.scaling)
                entry["magnitude"] = rope.magnitude
            if rope.sections:
                entry["sections"] = list(rope.sections)
        found.append(entry)
    return found


def _bits(spec: ArchSpec, checkpoint: Checkpoint) -> dict[str, float]:
    """Bits per weight of each kind of linear layer that the file holds; biases do not count."""
    kinds: dict[str, list[LinearSpec]] = {"embedding": [LinearSpec(spec.embedding, spec.vocab, spec.hidden)], "head": [spec.head_linear]}
    for layer in spec.layers:
        kinds.setdefault("attention", []).extend([*layer.qkv, layer.o])
        what = "experts" if isinstance(layer.mlp, MoeSpec) else "mlp"
        kinds.setdefault(what, []).extend(linear for group in layer.mlp.linears() for linear in group)
    found = {}
    for kind, linears in kinds.items():
        here = [linear for linear in linears if checkpoint.has_linear(linear)]
        nbytes = sum(checkpoint.infos[name].nbytes for name in _tensors(here, checkpoint))
        weights = sum(linear.n * linear.k for linear in here)
        if weights:
            found[kind] = round(8 * nbytes / weights, 3)
    return found


def _parameters(spec: ArchSpec, checkpoint: Checkpoint) -> int:
    """Those of the language model as it was published: a copied head and padding do not count."""
    linears = [linear for group in spec.linears() for linear in group if checkpoint.has_linear(linear)]
    if spec.tied:
        linears = [linear for linear in linears if linear.name != spec.head]
    biases = [linear.n for linear in linears if _has_bias(linear, checkpoint)]
    names = [spec.positions, spec.final_norm, *(name for layer in spec.layers for name in layer.norms())]
    vectors = [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    vectors += [layer.attention.sinks for layer in spec.layers]
    vectors += [layer.mlp.correction for layer in spec.layers if isinstance(layer.mlp, MoeSpec)]
    rest = sum(checkpoint.infos[name].numel for name in vectors if name in checkpoint)
    return spec.vocab * spec.hidden + sum(linear.n * linear.k for linear in linears) + sum(biases) + rest


def _has_bias(linear: LinearSpec, checkpoint: Checkpoint) -> bool:
    whole = linear.part.name if linear.part else linear.name
    return any(name in checkpoint for name in (f"{linear.name}.bias", f"{whole}.bias", f"{whole}_bias"))


def _tensors(linears: Iterable[LinearSpec], checkpoint: Checkpoint) -> set[str]:
    modules = {name for linear in linears for name in (linear.name, linear.part.name if linear.part else linear.name)}
    stacked = {f"{module}{suffix}" for module in modules for suffix in ("", "_blocks", "_scales")}
    inner = {name for name in checkpoint.infos if name.rpartition(".")[0] in modules and not name.endswith(".bias")}
    return inner | (stacked & checkpoint.infos.keys())


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = sorted(tokenizer.eos_ids)
    return {
        "bos": None if tokenizer.bos_id is None else {"id": tokenizer.bos_id, "piece": tokenizer.piece(tokenizer.bos_id)},
        "adds_bos": tokenizer.adds_bos,
        "eos": [{"id": token, "piece": tokenizer.piece(token)} for token in ids],
        "special": tokenizer.special_pieces,
        "template": bool(tokenizer.template_source),
    }
