"""LoRA adapters in the Python API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exltui import Engine
from exltui.errors import ModelError
from exltui.protocol import LoadOptions, Sampling

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(directory: Path, hidden: int = 576) -> Path:
    directory.mkdir(parents=True)
    g = torch.Generator().manual_seed(0)
    tensors = {f"{Q}.lora_A.weight": torch.randn(2, hidden, generator=g), f"{Q}.lora_B.weight": torch.randn(hidden, 2, generator=g)}
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return directory


def test_the_api_takes_rescales_and_drops_them(starter_model: Path, tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "pirate")
    with Engine.open(starter_model, LoadOptions(device="cpu", length=256)) as engine:

        def reply(**job: object) -> tuple[int, ...]:
            return engine.generate("The capital of France is", Sampling(temperature=0.0), max_new_tokens=4, **job).token_ids

        plain = reply()
        assert engine.load_adapter(directory, 50.0) == "pirate" and engine.adapters == {"pirate": 50.0}
        changed = reply()
        assert changed != plain and reply(adapters=()) == plain
        engine.rescale_adapter("pirate", 0.0)
        assert reply() == plain and reply(adapters=(("pirate", 50.0),)) == changed
        engine.drop_adapter("pirate")
        assert engine.adapters == {} and reply() == plain
        with pytest.raises(ModelError, match="no adapter 'pirate'"):
            engine.drop_adapter("pirate")
        with pytest.raises(ModelError, match="the model has"):
            engine.load_adapter(write_adapter(tmp_path / "other", 64))
