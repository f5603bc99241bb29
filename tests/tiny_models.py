"""Small random models in transformers' own format: the oracle of the parity tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from exltui.engine.model.loading import Model, load_model
from exltui.protocol import LoadOptions

VOCAB = 67  # not a multiple of anything that a kernel likes
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # not hidden / heads
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,  # enough for attention to be sharp, not so much that rounding decides
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,  # several families have one outside of so small a vocabulary
}


def make(
    family: str, directory: Path, *, seed: int = 0, shard: str = "5GB", dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A ``family`` ("Llama", "Mistral", ..) model with random weights, biases and norms, saved to ``directory``, in f32 and eager.

    ``changes`` to SHAPE; a value of ``...`` leaves the family's own default. GPT-2's class has another ending.
    """
    config = getattr(transformers, f"{family}Config")(**{k: v for k, v in {**SHAPE, **changes}.items() if v is not ...})
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    ending = "LMHeadModel" if family == "GPT2" else "ForConditionalGeneration" if "vision_config" in changes else "ForCausalLM"
    model = getattr(transformers, f"{family.removesuffix('Text')}{ending}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "norm.weight" in name:  # ones and zeros would hide a norm or bias that is never read
                parameter.copy_(torch.rand_like(parameter) + (0.5 if "norm" in name or ".ln_" in name else -0.5))
            elif "bias" in name or "experts" in name or "router" in name or name.endswith("gate.weight"):
                parameter.normal_(0, 2 * config.initializer_range)  # left at zero, or as torch.empty has it, by some families
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.copy_(torch.rand_like(buffer) * 0.1)
    model.to(dtype).save_pretrained(directory, max_shard_size=shard)
    return type(model).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )  # .float() would keep rounded RoPE tables


def rewrite(directory: Path, change: Any, **config: Any) -> None:
    """Make another file of a model: ``change`` takes its tensors by name and returns others; ``config`` replaces values (``...`` drops)."""
    path = directory / "model.safetensors"
    save_file({name: value.contiguous().clone() for name, value in change(load_file(path)).items()}, path)
    values = {**json.loads((directory / "config.json").read_text()), **config}
    (directory / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def load(directory: Path, **options: Any) -> Model:
    """On the CPU with exact arithmetic, unless ``options`` say otherwise."""
    return load_model(
        directory, LoadOptions(**{"device": "cpu", "load_as": "f16", "activations": "fp32", **options}), lambda *_: None, lambda: False
    )


def reference_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """[t, v] f32 from transformers."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]
