"""Every family as a small random model against transformers in f32: a prompt, token by token through the paged cache, uneven batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import SHAPE, VOCAB, load, make, reference_logits, rewrite
from torch import Tensor, nn

from exltui.engine.convert.rtn import write_exl2
from exltui.engine.model.config import Config
from exltui.engine.model.decoder import Decoder
from exltui.engine.model.families import FAMILIES, read_spec
from exltui.engine.model.loading import Model
from exltui.engine.model.tensors import Checkpoint
from exltui.engine.ops import bind
from exltui.engine.ops.references import multiply, normalise
from exltui.engine.ops.table import Call, nmse, recording
from exltui.engine.ops.types import PAGE
from exltui.engine.run.cache import KVCache
from exltui.engine.run.runner import Runner
from exltui.engine.run.step import Sequence, Step
from exltui.errors import ModelError
from exltui.models.catalog import read_model

EXACT = 1e-9  # f32 sums in another order; a wrong epsilon or theta gives more than 1e-4
LEVEL = 4e-5  # logits as near as this are as likely: two errors of the largest size seen, 1.8e-5, with torch on any number of threads
ROPE = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
UNKNOWN = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
HALF = 1e-5  # with f16 between the rows: 1e-7 to 3e-6 were seen
TIE = 5e-3  # of the routing probabilities: f16 between the rows moves their distances by 4e-4 as a rule (rms), and 3e-3 at most
SQUARE = {"head_dim": ...}  # families whose head dimension is the width over the heads
WINDOW = {"sliding_window": 20}
TIED = {"tie_word_embeddings": True}
GPT = {
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 96,
    "n_positions": 512,
    **dict.fromkeys([*UNKNOWN, "max_position_embeddings"], ...),
}
MOE = {"num_local_experts": 6, "num_experts_per_tok": 2}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
QWEN2_MOE = {**QWEN_MOE, "shared_expert_intermediate_size": 64, **SQUARE}
ERNIE_MOE = {"moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 40, "moe_num_shared_experts": 2, "moe_layer_start_index": 1}
DBRX = {
    "d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 512, **dict.fromkeys([*UNKNOWN, "max_position_embeddings"], ...),
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.7, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 5, "moe_top_k": 3, "hidden_size": 64},
}  # fmt: skip
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 2.5}
TWO_ROPES = {"full_attention": YARN, "sliding_attention": ROPE}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", MOE),
    "mixtral-window-tied-sharded": ("Mixtral", {**MOE, **WINDOW, **TIED, "shard": "90KB"}),
    "qwen2-moe": ("Qwen2Moe", QWEN2_MOE),
    "qwen2-moe-some-dense": ("Qwen2Moe", {**QWEN2_MOE, "norm_topk_prob": True, "mlp_only_layers": [0]}),
    "qwen3-moe": ("Qwen3Moe", {**QWEN_MOE, "norm_topk_prob": True}),
    "qwen3-moe-every-other": ("Qwen3Moe", {**QWEN_MOE, "decoder_sparse_step": 2}),
    "gemma": ("Gemma", TIED),
    "gemma2": ("Gemma2", {**WINDOW, **TIED, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3Text", {**WINDOW, **TIED, "num_hidden_layers": 7}),
    "phi3": ("Phi3", SQUARE),
    "phi3-partial-window": ("Phi3", {**SQUARE, **WINDOW, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.75}}),
    "starcoder2": ("Starcoder2", {**SQUARE, **WINDOW, **TIED}),
    "bigcode": ("GPTBigCode", {**GPT, **TIED}),
    "bigcode-many-kv-heads": ("GPTBigCode", {**GPT, "multi_query": False}),
    "gpt2": ("GPT2", {**GPT, **TIED}),
    "gpt2-by-depth": ("GPT2", {**GPT, "scale_attn_by_inverse_layer_idx": True}),
    "cohere": ("Cohere", {**SQUARE, **TIED, "logit_scale": 0.4}),
    "cohere-norms": ("Cohere", {**SQUARE, "use_qk_norm": True, "attention_bias": True}),
    "cohere2": ("Cohere2", {**SQUARE, **WINDOW, **TIED, "num_hidden_layers": 5}),
    "dbrx": ("Dbrx", DBRX),
    "granite": ("Granite", {**SQUARE, **GRANITE}),
    "glm": ("Glm", {"attention_bias": True}),
    "glm4": ("Glm4", {"attention_bias": True}),
    "smollm3": ("SmolLM3", {**SQUARE, "num_hidden_layers": 5}),
    "smollm3-window": ("SmolLM3", {**SQUARE, **WINDOW, **TIED, "no_rope_layers": [1, 0, 1], "use_sliding_window": True}),
    "olmo2": ("Olmo2", SQUARE),
    "olmo3": ("Olmo3", {**SQUARE, **WINDOW, "num_hidden_layers": 5}),
    "olmo3-yarn": ("Olmo3", {**SQUARE, **WINDOW, "num_hidden_layers": 4, "rope_parameters": TWO_ROPES}),
    "ernie": ("Ernie4_5", {**TIED, "use_bias": True}),
    "ernie-moe": ("Ernie4_5_Moe", {**SQUARE, **ERNIE_MOE}),
    "seed-oss": ("SeedOss", {"attention_bias": True, "attention_out_bias": False, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "gpt-oss": ("GptOss", {**MOE, **WINDOW, "num_experts_per_tok": 3, "rope_parameters": {**YARN, "truncate": False}}),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes wait longer for a second thread than they take on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(runner: Runner, *sequences: Sequence) -> torch.Tensor:
    return runner.step(Step.build(sequences, runner.model.device))


def fresh(model: Model, pages: int) -> Runner:
    return Runner(model, KVCache(model.spec, pages, (16, 16), model.device, torch.float32))


def margins(model: Model, ids: list[int]) -> Tensor:
    """[t] how much likelier the last expert that a token takes is than the first that it leaves out, at the closest in all layers."""
    calls: list[Call] = []
    pages = range(-(-len(ids) // PAGE))
    runner = fresh(model, len(pages))
    with recording(model.ops, calls):
        run(runner, Sequence(ids, 0, pages, "all", runner.adapters.mix(None)))
    closest = torch.ones(len(ids))
    for x, norm, router, routing in (call.arguments for call in calls if call.op == "route"):
        chances = multiply(normalise(x, norm, ""), router, "").softmax(-1)
        chances = chances if routing.correction is None else chances + routing.correction
        best = chances.topk(routing.top + 1).values
        closest = torch.minimum(closest, best[:, -2] - best[:, -1])
    return closest


def decided(model: Model, count: int, seed: int = 1) -> list[int]:
    """``count`` tokens for which no router of ``model`` (on the CPU, in f32) is within TIE of another choice.

    Where rounding decides which expert is taken, two right results differ by the whole expert, there and in every later token that
    attends to it. A token's margins depend on it and on those before it, so that one after the other can be replaced.
    """
    ids = tokens(count, seed)
    for _ in range(20 * count):
        near = (margins(model, ids) < TIE).nonzero().flatten().tolist()
        if not near:
            return ids
        ids[near[0]] = (ids[near[0]] + 1) % VOCAB
    raise AssertionError("there are no such tokens")


def check(model: Model, reference: Any) -> None:
    """A prompt of more than a page and than any window, its tokens one by one, and beside another sequence in uneven steps."""
    ids, other = tokens(262), tokens(37, seed=2)
    expected, beside = reference_logits(reference, ids), reference_logits(reference, other)
    got = run(fresh(model, 2), Sequence(ids, 0, [1, 0], "all"))
    assert got.shape == expected.shape
    assert nmse(got, expected) <= EXACT
    chosen = expected.gather(-1, got.argmax(-1, keepdim=True)).squeeze(-1)
    assert (expected.max(-1).values - chosen).max() <= LEVEL, "the likeliest token is another one"

    runner = fresh(model, 2)
    start = run(runner, Sequence(ids[:252], 0, [1, 0], "all"))
    singles = [run(runner, Sequence([token], 252 + i, [1, 0])) for i, token in enumerate(ids[252:])]
    assert nmse(torch.cat([start, *singles]), expected) <= EXACT

    runner, seen = fresh(model, 3), ([], [])
    for a0, a1, b0, b1 in ((0, 7, 0, 1), (7, 8, 1, 20), (8, 255, 20, 21), (255, 262, 21, 37)):
        rows = run(runner, Sequence(ids[a0:a1], a0, [0, 1], "all"), Sequence(other[b0:b1], b0, [2], "all"))
        seen[0].append(rows[: a1 - a0])
        seen[1].append(rows[a1 - a0 :])
    assert nmse(torch.cat(seen[0]), expected) <= EXACT
    assert nmse(torch.cat(seen[1]), beside) <= EXACT


@pytest.mark.parametrize("name", CASES)
def test_a_family_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    family, changes = CASES[name]
    reference = make(family, tmp_path, **changes)
    model = load(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    assert model.parameters == reference.num_parameters() == read_model(tmp_path).parameters
    check(model, reference)


@pytest.mark.parametrize("name", CASES)
def test_sixteen_bits_between_the_rows_stay_close(name: str, tmp_path: Path) -> None:
    """What a GPU computes, by the references on the CPU: f16 between the rows (f32 where a residual outgrows it), f32 within."""
    family, changes = CASES[name]
    reference = make(family, tmp_path, **changes)
    spec, ops = read_spec(Config.read(tmp_path)), bind("cpu", native=False)
    ops.dtype = torch.float16
    decoder = Decoder(spec, Checkpoint(tmp_path, renames=spec.renames), ops, 128)
    ids = decided(load(tmp_path), 100)
    step, cache = Step.build([Sequence(ids, 0, [0], "all")], ops.device), KVCache(spec, 1, (16, 16), ops.device)
    got = step.through(decoder, cache.layers)
    assert 1e-9 < nmse(got, reference_logits(reference, ids)) < HALF


# ── families that transformers does not have, made of ones that it has ───────────────────────────────────────────────────────────


def same(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


def renamed(*pairs: tuple[str, str]) -> Any:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for old, new in pairs:
            tensors = {name.replace(old, new): value for name, value in tensors.items()}
        return tensors

    return change


def test_yi_is_llama_with_other_names(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path)
    names = renamed(("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2"))
    rewrite(tmp_path, names, architectures=["YiForCausalLM"])
    check(load(tmp_path), reference)


def test_orion_is_llama_with_layer_norms(tmp_path: Path) -> None:
    reference = make("Llama", tmp_path)
    for name, module in [(n, m) for n, m in reference.named_modules() if n.endswith("norm")]:
        layer_norm = nn.LayerNorm(64, reference.config.rms_norm_eps)
        nn.init.uniform_(layer_norm.weight, 0.5, 1.5)
        nn.init.uniform_(layer_norm.bias, -0.5, 0.5)
        parent, _, last = name.rpartition(".")
        assert type(module).__name__ == "LlamaRMSNorm"
        setattr(reference.get_submodule(parent), last, layer_norm)
    save_file({name: value.clone() for name, value in reference.state_dict().items()}, tmp_path / "model.safetensors")
    rewrite(tmp_path, same, architectures=["OrionForCausalLM"])
    check(load(tmp_path), reference)


@pytest.mark.parametrize("norm_head", [0, 1])
def test_index_may_have_a_normalised_head(norm_head: int, tmp_path: Path) -> None:
    reference = make("Llama", tmp_path)
    rewrite(tmp_path, same, architectures=["IndexForCausalLM"], norm_head=norm_head)
    if norm_head:
        with torch.no_grad():
            reference.lm_head.weight.copy_(nn.functional.normalize(reference.lm_head.weight))
    check(load(tmp_path), reference)


def test_minicpm_scales_as_granite_does(tmp_path: Path) -> None:
    scales = {"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 3**0.5, "logits_scaling": 4.0, "attention_multiplier": 0.25}
    reference = make("Granite", tmp_path, **scales, **SQUARE)
    rewrite(
        tmp_path, same, architectures=["MiniCPMForCausalLM"], scale_emb=12, scale_depth=1.4, dim_model_base=16, **dict.fromkeys(scales, ...)
    )
    check(load(tmp_path), reference)


@pytest.mark.parametrize("split", [False, True])
def test_internlm2_holds_queries_beside_their_key(split: bool, tmp_path: Path) -> None:
    reference = make("Llama", tmp_path, attention_bias=True)

    def fuse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for i in range(3):
            for part in ("weight", "bias"):
                q, k, v = (tensors.pop(f"model.layers.{i}.self_attn.{x}_proj.{part}").unflatten(0, (2, -1)) for x in "qkv")
                tensors[f"model.layers.{i}.self_attn.wqkv.{part}"] = torch.cat((q, k, v), dim=1).flatten(0, 1)
        return tensors

    names = [("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"), ("self_attn", "attention")]
    names += [("o_proj", "wo"), ("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("mlp", "feed_forward")]
    names += [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")]
    if split:  # as EXL2 files have them
        names = [("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2")]
    rewrite(tmp_path, lambda tensors: renamed(*names)(tensors if split else fuse(tensors)), architectures=["InternLM2ForCausalLM"])
    model = load(tmp_path)
    assert model.parameters == reference.num_parameters()
    check(model, reference)


@pytest.mark.parametrize("blocks", [False, True])
def test_decilm_has_key_value_heads_for_each_layer(blocks: bool, tmp_path: Path) -> None:
    """Against Llama with as many of them in every layer, where those of some layers are copies."""
    reference = make("Llama", tmp_path, num_key_value_heads=4, intermediate_size=256)
    heads = [1, 4, 2]
    for g, layer in zip(heads, reference.model.layers, strict=True):
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            rows = linear.weight.data.view(4, 32, 64)[:g]
            linear.weight.data.copy_(rows.repeat_interleave(4 // g, dim=0).flatten(0, 1))

    def shrink(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for i, g in enumerate(heads):
            for x in "kv":
                tensors[f"model.layers.{i}.self_attn.{x}_proj.weight"] = tensors[f"model.layers.{i}.self_attn.{x}_proj.weight"][: g * 32]
        return tensors

    described: dict[str, Any] = {"num_key_value_heads_per_layer": heads}
    if blocks:
        described = {
            "block_configs": [{"attention": {"n_heads_in_group": 4 // g, "no_op": False}, "ffn": {"ffn_mult": 1.0}} for g in heads]
        }
        described["intermediate_size"] = None
    rewrite(tmp_path, shrink, architectures=["DeciLMForCausalLM"], num_key_value_heads=None, **described)
    check(load(tmp_path), reference)
    if blocks:
        described["block_configs"][1]["attention"]["no_op"] = True
    else:
        described["num_key_value_heads_per_layer"] = [1, 3, 2]
    rewrite(tmp_path, same, **described)
    with pytest.raises(ModelError, match="left out" if blocks else "3 key/value heads for 4 heads"):
        load(tmp_path)


# ── other files of the same families ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("names", [[], [("language_model.model.", "model.language_model.")], [("language_model.model.", "model.")]])
def test_the_text_part_of_a_gemma3_that_sees(names: list[tuple[str, str]], tmp_path: Path) -> None:
    text = {**{key: value for key, value in SHAPE.items() if not key.startswith("tie")}, **WINDOW, "num_hidden_layers": 7}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    parts = {"text_config": text, "vision_config": {**vision, "patch_size": 14}, "mm_tokens_per_image": 4, "image_token_index": 60}
    reference = make("Gemma3", tmp_path, **{**dict.fromkeys(SHAPE, ...), **parts, **TIED})
    rewrite(tmp_path, renamed(*names))
    check(load(tmp_path), reference)


SMALL = {"num_hidden_layers": 1, "intermediate_size": 16, "image_size": 28, "patch_size": 14}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 16, "num_attention_heads": 2, **SMALL}
MISTRAL = {
    "text_config": {"model_type": "mistral", "sliding_window": None}, "vision_config": PIXTRAL, "image_token_index": 60,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}, "head_dim": 16}
VISION = {"depth": 1, "num_heads": 2, "patch_size": 14}
SEEING: dict[str, dict[str, Any]] = {
    "Llava": MISTRAL,
    "Mistral3": MISTRAL,
    "Qwen2VL": {"text_config": MROPE, "vision_config": {**VISION, "embed_dim": 16, "hidden_size": 64}},
    "Qwen2_5_VL": {"text_config": MROPE, "vision_config": {**VISION, "hidden_size": 16, "out_hidden_size": 64}},
}


@pytest.mark.parametrize("family", SEEING)
def test_the_text_part_of_others_that_see(family: str, tmp_path: Path) -> None:
    parts = SEEING[family]
    text = {**{key: value for key, value in SHAPE.items() if not key.startswith("tie")}, **parts["text_config"]}
    reference = make(family, tmp_path, **{**dict.fromkeys(SHAPE, ...), **parts, "text_config": text, "tie_word_embeddings": False})
    check(load(tmp_path), reference)


@pytest.mark.parametrize("name", ["phi3", "glm4", "gpt2", "dbrx", "gpt-oss", "qwen2-moe-some-dense"])
def test_a_family_as_exl2_has_every_layer_under_its_own_name(name: str, tmp_path: Path) -> None:
    """Fused and stacked tensors come apart when a model is converted; 8 bits are close to what they were."""
    family, changes = CASES[name]
    reference = make(family, tmp_path / "plain", **changes)
    write_exl2(tmp_path / "plain", tmp_path / "exl2", 8, 8)
    model = load(tmp_path / "exl2")
    assert model.format == "exl2"
    ids = tokens(100)
    error = nmse(run(fresh(model, 1), Sequence(ids, 0, [0], "all")), reference_logits(reference, ids))
    assert 1e-8 < error < 0.02


def test_exl2_widths_may_be_filled_up(tmp_path: Path) -> None:
    """One key/value head of 16: the converter adds 16 rows of zeros, which are no part of the model."""
    reference = make("Llama", tmp_path / "plain", num_key_value_heads=1, head_dim=16, attention_bias=True)
    write_exl2(tmp_path / "plain", tmp_path / "exl2", 8, 8)
    assert Checkpoint(tmp_path / "exl2").infos["model.layers.0.self_attn.k_proj.q_weight"].shape[1] == 32
    ids, model = tokens(40), load(tmp_path / "exl2")
    assert model.parameters == reference.num_parameters()
    assert 1e-8 < nmse(run(fresh(model, 1), Sequence(ids, 0, [0], "all")), reference_logits(reference, ids)) < 0.02


def test_every_family_has_a_case() -> None:
    ours = {"YiForCausalLM", "OrionForCausalLM", "IndexForCausalLM", "MiniCPMForCausalLM", "InternLM2ForCausalLM", "DeciLMForCausalLM"}
    others = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}  # test_parity.py
    known = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
    covered = {known.get(family, f"{family}ForCausalLM") for family, _ in CASES.values()}
    seeing = {f"{family}ForConditionalGeneration" for family in ("Gemma3", *SEEING)}
    assert covered | ours | others | seeing == set(FAMILIES)
