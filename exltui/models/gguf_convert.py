"""One Llama GGUF file -> a Hugging Face style directory that exltui, transformers and everybody else can open.

Every tensor is dequantised to f16 safetensors; the tokenizer and the chat template are rebuilt from the file's metadata. GGUF keeps the
rows of q and k in an order that pairs RoPE dimensions as neighbours; that is undone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from exltui.errors import ModelError

Progress = Callable[[int, int], None]  # tensors done, tensors in all

NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
SPECIAL = 3  # a token type of GGUF: control tokens


def convert(gguf_file: Path, directory: Path, progress: Progress) -> None:
    """Write config, tokenizer, template and weights of ``gguf_file`` into the existing ``directory``. Raises ModelError."""
    from gguf import GGUFReader  # takes 0.2 s, and only the starter model needs it

    reader = GGUFReader(gguf_file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    if facts.get("general.architecture") != "llama" or facts.get("tokenizer.ggml.pre") != "smollm":
        raise ModelError(f"{gguf_file.name}: only SmolLM2's GGUF can be converted", "get a safetensors version of the model instead")
    tensors = {}
    for done, tensor in enumerate(reader.tensors):
        progress(done, len(reader.tensors))
        name = hugging_face_name(tensor.name)
        tensors[name] = _dequantise(tensor, facts)
    tied = "lm_head.weight" not in tensors
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors lets only the owner read it; a models folder may be shared
    _write_json(directory / "config.json", _config(facts, tied))
    ids = {"bos_token_id": facts["tokenizer.ggml.bos_token_id"], "eos_token_id": facts["tokenizer.ggml.eos_token_id"]}
    sampler = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}  # as the model's card advises; so small a model rambles at more
    _write_json(directory / "generation_config.json", {**ids, "pad_token_id": facts["tokenizer.ggml.padding_token_id"], **sampler})
    _write_tokenizer(facts, directory)
    progress(len(reader.tensors), len(reader.tensors))


def hugging_face_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    if name in NAMES:
        return NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def _dequantise(tensor: Any, facts: dict[str, Any]) -> NDArray[np.float16]:
    from gguf import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name:
        values = unpermute(values, facts["llama.attention.head_count"])
    elif ".attn_k." in tensor.name:
        values = unpermute(values, facts["llama.attention.head_count_kv"])
    return np.ascontiguousarray(values.astype(np.float16))


def unpermute(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k [heads * d, k] from GGUF's order (2i, 2i + 1 are a RoPE pair) to (i, i + d/2)."""
    width = rows.shape[0] // heads // 2
    return rows.reshape(heads, width, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _config(facts: dict[str, Any], tied: bool) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "hidden_act": "silu",
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": facts["llama.rope.freq_base"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float16",
    }


def _write_tokenizer(facts: dict[str, Any], directory: Path) -> None:
    """Byte-level BPE; SmolLM2 splits numbers into single digits first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {kind: pieces[facts[f"tokenizer.ggml.{key}_token_id"]] for kind, key in
             {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}.items()}  # fmt: skip
    _write_json(
        directory / "tokenizer_config.json",
        {
            **named,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(facts["tokenizer.ggml.add_bos_token"]),
            "model_max_length": facts["llama.context_length"],
            "chat_template": facts["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
