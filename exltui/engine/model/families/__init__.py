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


def read_spec(config: Config) -> ArchSpec:
    """The spec of a model. Raises ModelError for an architecture that is not known; nothing is guessed."""
    name = config.architecture
    if name not in FAMILIES:
        raise ModelError(f"{config.where}: the architecture {name} is not known", f"exltui runs {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name](config)
