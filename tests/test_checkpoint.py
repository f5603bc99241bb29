"""Safetensors headers: what is whole is read, what lies is refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import raw_file, safetensors_bytes
from safetensors.numpy import load_file, save_file

from exltui.checkpoint import read_checkpoint, read_header
from exltui.errors import CheckpointError


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b.c": np.ones((4,), np.float32), "empty": np.zeros((0, 3), np.int32)}
    file = tmp_path / "model.safetensors"
    save_file(arrays, file, metadata={"format": "pt"})
    found = read_header(file)
    data = file.read_bytes()
    assert set(found) == set(load_file(file))
    for name, array in arrays.items():
        info = found[name]
        assert info.shape == array.shape and info.numel == array.size and info.nbytes == array.nbytes
        assert data[info.offset : info.offset + info.nbytes] == array.tobytes()


def test_all_shards_of_a_directory_are_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(safetensors_bytes({"a": ("F16", (2, 2))}))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(safetensors_bytes({"b": ("BF16", (3,))}))
    tensors = read_checkpoint(tmp_path)
    assert {name: info.file.name for name, info in tensors.items()} == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    (tmp_path / "extra.safetensors").write_bytes(safetensors_bytes({"b": ("BF16", (3,))}))
    with pytest.raises(CheckpointError, match=r"tensor b is in extra\.safetensors too"):
        read_checkpoint(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"there is no \.safetensors file") as caught:
        read_checkpoint(tmp_path)
    assert "converted" in caught.value.hint


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "claims"),
    "shorter than a length": (b"\x01\x02", "claims"),
    "header longer than the file": ((1 << 40).to_bytes(8, "little") + b"{}", "claims 1,099,511,627,776 bytes"),
    "header over the limit": ((100_000_001).to_bytes(8, "little") + b"{}", "claims"),
    "header of no bytes": ((0).to_bytes(8, "little") + b"xxxx", "claims 0 bytes"),
    "not JSON": (raw_file(b"{nonsense", b""), "not valid JSON"),
    "not UTF-8": (raw_file(b'{"\xff": 1}', b""), "not valid JSON"),
    "a list": (raw_file([], b""), "not a table of tensors"),
    "endless nesting": (raw_file(b"[" * 100_000, b""), "not valid JSON"),
    "a name twice": (
        raw_file(b'{"a": ' + json.dumps(entry()).encode() + b', "a": ' + json.dumps(entry()).encode() + b"}", bytes(8)),
        "twice",
    ),
    "truncated data": (raw_file({"a": entry()}, bytes(7)), "ends at byte"),
    "offsets outside": (raw_file({"a": entry(offsets=[8, 16])}, bytes(8)), "ends at byte"),
    "end before begin": (raw_file({"a": entry(shape=(0,), offsets=[8, 0])}, bytes(8)), "ends at byte"),
    "negative offset": (raw_file({"a": entry(offsets=[-8, 0])}, bytes(8)), "impossible offsets"),
    "one offset": (raw_file({"a": entry(offsets=[0])}, bytes(8)), "impossible offsets"),
    "offsets of text": (raw_file({"a": entry(offsets=["0", "8"])}, bytes(8)), "impossible offsets"),
    "offsets of booleans": (raw_file({"a": entry(offsets=[False, True])}, bytes(8)), "impossible offsets"),
    "unknown dtype": (raw_file({"a": entry(dtype="F12")}, bytes(8)), "unknown dtype 'F12'"),
    "a dtype of another kind": (raw_file({"a": entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
    "no dtype": (raw_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "unknown dtype"),
    "negative shape": (raw_file({"a": entry(shape=[-2])}, bytes(8)), "impossible shape"),
    "shape of fractions": (raw_file({"a": entry(shape=[2.0])}, bytes(8)), "impossible shape"),
    "no shape": (raw_file({"a": entry(shape=None)}, bytes(8)), "impossible shape"),
    "shape and size differ": (raw_file({"a": entry(shape=(3,))}, bytes(8)), "needs 12 bytes, the file has 8"),
    "a shape that overflows": (raw_file({"a": entry(shape=[1 << 61, 1 << 61])}, bytes(8)), "the file has 8"),
    "overlap": (raw_file({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlap"),
    "not a table": (raw_file({"a": [1]}, bytes(8)), "not described by a table"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_lies_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    data, words = BAD[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    sentence = str(caught.value)
    assert words in sentence and sentence.startswith("model.safetensors") and "\n" not in sentence and len(sentence) < 400
    assert caught.value.hint


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "nothing.safetensors")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_within_its_bounds(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever single byte is changed or wherever the file is cut: no other exception, and no tensor outside the file."""
    whole = safetensors_bytes({"a": ("F16", (2, 2)), "b": ("F32", (3,))})
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:position]
    else:
        damaged = whole[:position] + bytes([data.draw(st.integers(0, 255))]) + whole[position + 1 :]
    file = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    file.write_bytes(damaged)
    try:
        found = read_header(file)
    except CheckpointError:
        return
    assert all(info.offset + info.nbytes <= len(damaged) for info in found.values())
