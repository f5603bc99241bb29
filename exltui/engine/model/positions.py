"""How far a model's positions reach: what the user changes about RoPE, and what to say about a context beyond the trained one."""

from __future__ import annotations

import math
from dataclasses import replace

from exltui.engine.model.spec import ArchSpec
from exltui.engine.ops.rope import DynamicScaling, LinearScaling, RopeSpec, YarnScaling
from exltui.errors import ModelError
from exltui.protocol import LoadOptions


def with_overrides(spec: ArchSpec, options: LoadOptions) -> ArchSpec:
    """The user's scaling (linear or YaRN) in place of the model's, and NTK alpha on top. Layers with a window keep theirs: they reach
    no further than before. Raises ModelError.
    """
    given = {"rope-scale": options.rope_scale, "rope-alpha": options.rope_alpha, "rope-yarn": options.rope_yarn}
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ModelError(f"--{name} {value:g} is impossible", "give a number above 0; 1 changes nothing")
    if options.rope_scale is not None and options.rope_yarn is not None:
        raise ModelError("--rope-scale and --rope-yarn exclude each other", "YaRN scales the positions itself")
    if not any(given.values()):
        return spec
    ropes = {layer.attention.rope for layer in spec.layers} - {None}
    if not ropes:
        raise ModelError(f"{spec.architecture} has no RoPE that {' or '.join(f'--{n}' for n, v in given.items() if v)} could change", "")

    def change(rope: RopeSpec) -> RopeSpec:
        if options.rope_scale is not None:
            rope = replace(rope, scaling=LinearScaling(options.rope_scale))
        if options.rope_yarn is not None:
            rope = replace(rope, scaling=YarnScaling(options.rope_yarn, spec.trained_context))
        return replace(rope, alpha=options.rope_alpha or 1.0)

    layers = []
    for layer in spec.layers:
        rope = layer.attention.rope
        if rope is not None and not (layer.attention.window and len(ropes) > 1):
            layer = replace(layer, attention=replace(layer.attention, rope=change(rope)))
        layers.append(layer)
    return replace(spec, layers=tuple(layers))


def check_context(spec: ArchSpec, context: int) -> tuple[str, ...]:
    """What to say about ``context`` tokens, a sentence each. Raises ModelError if the model has no positions for them at all."""
    if spec.positions and context > spec.trained_context:
        raise ModelError(
            f"{spec.architecture} learned {spec.trained_context:,} positions, --length asks for {context:,}", "give a smaller --length"
        )
    reach = min((_reach(layer.attention.rope, spec.trained_context) for layer in spec.layers), default=math.inf)
    if context <= reach:
        return ()
    return (
        f"the context of {context:,} tokens is longer than the {reach:,.0f} that the model was made for; "
        "replies may turn to nonsense: --rope-yarn, --rope-alpha or --rope-scale stretch it",
    )


def _reach(rope: RopeSpec | None, trained: int) -> float:
    """Tokens that a layer's positions are made for; endless where they need not be known."""
    if rope is None or rope.alpha > 1 or isinstance(rope.scaling, DynamicScaling):
        return math.inf
    if isinstance(rope.scaling, YarnScaling):
        return max(rope.scaling.original_context * rope.scaling.factor, trained)
    # A linear factor of the model's own is in the trained context already; the user's is told from it by with_overrides.
    return trained * rope.scaling.factor if isinstance(rope.scaling, LinearScaling) and rope.scaling.factor > 1 else trained
