"""The families: functions that turn a config.json into an ArchSpec, by the name in its ``architectures``."""

from __future__ import annotations

from collections.abc import Callable

from exltui.engine.model.config import Config
from exltui.engine.model.families.llama import read_llama, read_mistral, read_qwen2, read_qwen3
from exltui.engine.model.spec import ArchSpec
from exltui.errors import ModelError

FAMILIES: dict[str, Callable[[Config], ArchSpec]] = {
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen3ForCausalLM": read_qwen3,
}


# What says nothing about the arithmetic of a forward pass, or is read elsewhere.
NEUTRAL = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range", "attention_dropout",
    "hidden_dropout", "pretraining_tp", "_name_or_path", "quantization_config", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id",
    "attention_bias", "mlp_bias",
}  # fmt: skip


def read_spec(config: Config) -> ArchSpec:
    """The spec of a model. Raises ModelError for an architecture that is not known; nothing is guessed."""
    name = config.architecture
    if name in FAMILIES:
        return FAMILIES[name](config)
    strange = {family: _differences(config, family) for family in FAMILIES}
    nearest = min(strange, key=lambda family: len(strange[family]))
    others = f" and {', '.join(strange[nearest][:6])}" if strange[nearest] else ""
    raise ModelError(
        f"{config.where}: the architecture {name} is not known; its config.json has the settings of {nearest}{others}",
        f"exltui runs {', '.join(sorted(FAMILIES))}",
    )


def _differences(config: Config, family: str) -> list[str]:
    """The settings that ``family`` would not read, or what it could not read."""
    fresh = Config(config.values, config.where)
    try:
        FAMILIES[family](fresh)
    except ModelError:
        return sorted(config.values)
    return sorted(key for key, value in config.values.items() if value and key not in fresh.asked | NEUTRAL)
