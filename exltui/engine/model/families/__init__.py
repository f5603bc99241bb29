"""The families: functions that turn a config.json into an ArchSpec, by the name in its ``architectures``."""

from __future__ import annotations

from collections.abc import Callable

from exltui.engine.model.config import Config
from exltui.engine.model.families.cohere import read_cohere, read_cohere2
from exltui.engine.model.families.gemma import read_gemma, read_gemma2, read_gemma3
from exltui.engine.model.families.glm import read_ernie, read_glm, read_glm4
from exltui.engine.model.families.gpt import read_bigcode, read_gpt2, read_starcoder2
from exltui.engine.model.families.llama import (
    read_granite,
    read_index,
    read_llama,
    read_minicpm,
    read_mistral,
    read_orion,
    read_qwen2,
    read_qwen3,
    read_seeing_mistral,
    read_seeing_qwen2,
    read_smollm3,
    read_yi,
)  # fmt: skip
from exltui.engine.model.families.moe import read_ernie_moe, read_mixtral, read_qwen2_moe, read_qwen3_moe
from exltui.engine.model.families.olmo import read_olmo2, read_olmo3
from exltui.engine.model.families.phi import read_phi3
from exltui.engine.model.families.stacked import read_dbrx, read_gpt_oss
from exltui.engine.model.families.variants import read_decilm, read_internlm2
from exltui.engine.model.spec import ArchSpec
from exltui.errors import ModelError

FAMILIES: dict[str, Callable[[Config], ArchSpec]] = {
    "LlamaForCausalLM": read_llama,
    "MistralForCausalLM": read_mistral,
    "MixtralForCausalLM": read_mixtral,
    "Qwen2ForCausalLM": read_qwen2,
    "Qwen2MoeForCausalLM": read_qwen2_moe,
    "Qwen3ForCausalLM": read_qwen3,
    "Qwen3MoeForCausalLM": read_qwen3_moe,
    "GemmaForCausalLM": read_gemma,
    "Gemma2ForCausalLM": read_gemma2,
    "Gemma3ForCausalLM": read_gemma3,
    "Gemma3ForConditionalGeneration": read_gemma3,
    "Phi3ForCausalLM": read_phi3,
    "Starcoder2ForCausalLM": read_starcoder2,
    "GPTBigCodeForCausalLM": read_bigcode,
    "GPT2LMHeadModel": read_gpt2,
    "CohereForCausalLM": read_cohere,
    "Cohere2ForCausalLM": read_cohere2,
    "DbrxForCausalLM": read_dbrx,
    "GraniteForCausalLM": read_granite,
    "GlmForCausalLM": read_glm,
    "Glm4ForCausalLM": read_glm4,
    "DeciLMForCausalLM": read_decilm,
    "YiForCausalLM": read_yi,
    "OrionForCausalLM": read_orion,
    "IndexForCausalLM": read_index,
    "MiniCPMForCausalLM": read_minicpm,
    "InternLM2ForCausalLM": read_internlm2,
    "SmolLM3ForCausalLM": read_smollm3,
    "Olmo2ForCausalLM": read_olmo2,
    "Olmo3ForCausalLM": read_olmo3,
    "Ernie4_5ForCausalLM": read_ernie,
    "Ernie4_5_MoeForCausalLM": read_ernie_moe,
    "SeedOssForCausalLM": read_llama,
    "GptOssForCausalLM": read_gpt_oss,
    "LlavaForConditionalGeneration": read_seeing_mistral,
    "Mistral3ForConditionalGeneration": read_seeing_mistral,
    "Qwen2VLForConditionalGeneration": read_seeing_qwen2,
    "Qwen2_5_VLForConditionalGeneration": read_seeing_qwen2,
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
