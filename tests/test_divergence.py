"""How far the ways to load a model on the CPU are from the model as transformers computes it, in f32, on real weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from exltui.engine.evaluate.logits import logits
from exltui.engine.model.loading import load_model
from exltui.protocol import LoadOptions
from exltui.tokenizer import Tokenizer

TEXTS = [
    "The capital of France is",
    "def add(left, right):\n    return left +",
    "In the beginning the universe was created. This has made a lot of people very angry and has been widely regarded as a",
    "1, 2, 3, 5, 8, 13, 21,",
    "<|im_start|>user\nWhat is the largest planet?<|im_end|>\n<|im_start|>assistant\nThe largest planet is",
    "Bread is made of flour, water, yeast and",
]


@pytest.fixture(scope="module")
def references(starter_model: Path) -> list[tuple[list[int], Tensor]]:
    """The ids of each text, and the log-probabilities behind the last of them."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(starter_model, dtype=torch.float32)
    found = []
    for text in TEXTS:
        ids = Tokenizer(starter_model).encode(text)
        with torch.inference_mode():
            found.append((ids, model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)))
    return found


@pytest.mark.parametrize(
    ("load_as", "activations", "allowed"),
    [("f16", None, 1e-4), ("q8", "int8", 3e-2), ("q4", "int8", 3e-2)],
)
def test_the_next_token_is_as_likely_as_in_the_full_model(
    load_as: str, activations: str | None, allowed: float, starter_model: Path, references: list[tuple[list[int], Tensor]]
) -> None:
    """The KL divergence in nats at the last position: at most 1e-4 with fp32 arithmetic on the model's own weights, 3e-2 with int8."""
    options = LoadOptions(device="cpu", length=256, load_as=load_as, activations=activations)
    model = load_model(starter_model, options, lambda *_: None, lambda: False)
    found = []
    for ids, expected in references:
        ours = logits(model, ids)[-1].log_softmax(-1)
        found.append(float((expected.exp() * (expected - ours)).sum()))
    assert -1e-6 < min(found) and max(found) <= allowed, found
