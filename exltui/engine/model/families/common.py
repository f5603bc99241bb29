"""What the families are made of: the values that nearly all config.json files have, and changes to a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from exltui.engine.model.config import CONTEXT, Config
from exltui.engine.model.families.rope import read_rope
from exltui.engine.model.spec import ArchSpec, AttentionSpec, LayerSpec, LinearSpec, MlpSpec, MoeSpec, Part
from exltui.engine.ops.types import Activation
from exltui.errors import ModelError

HIDDEN, LAYERS = ("hidden_size", "d_model", "n_embd"), ("num_hidden_layers", "n_layers", "n_layer")
HEADS, KV_HEADS = ("num_attention_heads", "n_heads", "n_head"), ("num_key_value_heads", "attn_config.kv_n_heads")
EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
ACTIVATION = ("hidden_act", "hidden_activation", "activation_function")
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
MAX_LAYERS, MAX_EXPERTS = 10_000, 4096
# In files of classes that also see, the language model's names have a prefix, before or after "model.".
TEXT_PART = ((r"^language_model\.lm_head\.", "lm_head."), (r"^(model\.)?language_model\.(model\.)?", "model."))


def impossible(config: Config, what: str) -> ModelError:
    return ModelError(f"{config.where}: {what}", "check config.json")


def layer_name(index: int) -> str:
    return f"model.layers.{index}."


def read_attention(config: Config, *, rope: bool = True, interleaved: bool = False) -> AttentionSpec:
    """Grouped-query attention with scores over the root of the head dimension."""
    hidden, h = config.size(*HIDDEN), config.size(*HEADS)
    g = config.size(*KV_HEADS, default=h)
    d = config.size("head_dim", default=max(hidden // h, 1))
    if h % g or d % 2:
        raise impossible(config, f"{h} heads of width {d} over {g} key/value heads is impossible")
    return AttentionSpec(h=h, g=g, d=d, scale=d**-0.5, rope=read_rope(config, d, interleaved=interleaved) if rope else None)


def read_activation(config: Config) -> Activation:
    name = config.get(str, *ACTIVATION, default="silu")
    if name not in ACTIVATIONS:
        raise ModelError(f"{config.where}: the activation {name} is not known", f"known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def gated_mlp(prefix: str, hidden: int, width: int, activation: Activation, names: tuple[str, str, str]) -> MlpSpec:
    """``names`` of gate, up and down below ``prefix``."""
    gate, up, down = (prefix + name for name in names)
    return MlpSpec((LinearSpec(gate, width, hidden), LinearSpec(up, width, hidden)), LinearSpec(down, hidden, width), activation)


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def plain_layer(prefix: str, hidden: int, attention: AttentionSpec, mlp: MlpSpec | MoeSpec) -> LayerSpec:
    """A layer with Llama's names and order."""
    queries, keys = attention.h * attention.d, attention.g * attention.d
    q, k, v = (LinearSpec(f"{prefix}self_attn.{name}_proj", n, hidden) for name, n in (("q", queries), ("k", keys), ("v", keys)))
    o = LinearSpec(f"{prefix}self_attn.o_proj", hidden, queries)
    return LayerSpec(attention, (q, k, v), o, mlp, f"{prefix}input_layernorm", f"{prefix}post_attention_layernorm")


def read_base(config: Config, attention: AttentionSpec) -> ArchSpec:
    """A model of equal layers: norm, attention, norm, gated MLP, each added to what came before."""
    hidden, activation, width = config.size(*HIDDEN), read_activation(config), config.size("intermediate_size")
    names = [layer_name(i) for i in range(config.size(*LAYERS, limit=MAX_LAYERS))]
    layers = (plain_layer(n, hidden, attention, gated_mlp(f"{n}mlp.", hidden, width, activation, PROJECTIONS)) for n in names)
    return arch(config, tuple(layers))


def arch(config: Config, layers: tuple[LayerSpec, ...]) -> ArchSpec:
    return ArchSpec(
        architecture=config.architecture,
        vocab=config.size("vocab_size"),
        hidden=config.size(*HIDDEN),
        layers=layers,
        eps=config.get(float, *EPS),
        trained_context=config.size(*CONTEXT, default=2048),
        tied=config.get(bool, "tie_word_embeddings", default=False),
    )


# ── changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def each_layer(spec: ArchSpec, change: Callable[[int, LayerSpec], LayerSpec]) -> ArchSpec:
    return replace(spec, layers=tuple(change(i, layer) for i, layer in enumerate(spec.layers)))


def attend_with(spec: ArchSpec, change: Callable[[int, AttentionSpec], AttentionSpec]) -> ArchSpec:
    return each_layer(spec, lambda i, layer: replace(layer, attention=change(i, layer.attention)))


def with_activation(spec: ArchSpec, activation: Activation) -> ArchSpec:
    def change(index: int, layer: LayerSpec) -> LayerSpec:
        return replace(layer, mlp=replace(layer.mlp, activation=activation)) if isinstance(layer.mlp, MlpSpec) else layer

    return each_layer(spec, change)


def layer_kinds(config: Config, count: int, default: Callable[[int], bool]) -> list[bool]:
    """Which layers have a sliding window: what ``layer_types`` says, or where the config has no such list, ``default``."""
    usual = ["sliding_attention" if default(i) else "full_attention" for i in range(count)]
    kinds = config.get(list, "layer_types", default=usual)
    if len(kinds) != count or not all(kind in ("sliding_attention", "full_attention") for kind in kinds):
        raise impossible(config, "layer_types in config.json does not name a known kind for each layer")
    return [kind == "sliding_attention" for kind in kinds]


def windowed(config: Config, spec: ArchSpec, default: Callable[[int], bool]) -> ArchSpec:
    """A sliding window on the layers of ``layer_kinds``, if the config names one."""
    window = config.get(int, "sliding_window", "sliding_window_size", default=0)
    slides = layer_kinds(config, len(spec.layers), default)
    return attend_with(spec, lambda i, attention: replace(attention, window=max(window, 0) if slides[i] else 0))


def split_rows(linears: tuple[LinearSpec, ...], name: str, *, transposed: bool = False) -> tuple[LinearSpec, ...]:
    """The same linears, lying one after another in the tensor ``name``."""
    total, parts, begin = sum(linear.n for linear in linears), [], 0
    for linear in linears:
        parts.append(replace(linear, part=Part(name, begin, linear.n, total, transposed=transposed)))
        begin += linear.n
    return tuple(parts)


def split_heads(layer: LayerSpec, name: str) -> LayerSpec:
    """q, k and v lie in ``name`` by key/value head: the queries that share it, its key, its value."""
    attention = layer.attention
    share, d = attention.h // attention.g, attention.d
    run = (share + 2) * d
    places = ((0, share * d), (share * d, d), ((share + 1) * d, d))
    q, k, v = (replace(x, part=Part(name, begin, count, run)) for x, (begin, count) in zip(layer.qkv, places, strict=True))
    return replace(layer, qkv=(q, k, v))
