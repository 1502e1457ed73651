"""Headers and configs that no program would write: one error that names the file, soon, and never another.

The inputs are those that once ended as an internal error or took all memory, and what hypothesis makes of good ones.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.checkpoints.config_files import read_json, text_encoder_params, transformer_params, vae_params
from backend.checkpoints.headers import read_header
from backend.checkpoints.layouts import diffusers
from backend.errors import CheckpointError
from backend.params import VAEParams
from tests.properties import steady

TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def safetensors(folder: Path, header: str | bytes, data: bytes = b"\0" * 24) -> Path:
    raw = header.encode() if isinstance(header, str) else header
    path = folder / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(**change: Any) -> str:
    return json.dumps({"a": TENSOR | change})


HEADERS = {
    "deep": '{"a":' + "[" * 100_000,
    "metadata is a list": '{"__metadata__": [1], "a": ' + json.dumps(TENSOR) + "}",
    "infinite offset": '{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, Infinity]}}',
    "long number": '{"a": {"dtype": "F32", "shape": [' + "9" * 5_000 + '], "data_offsets": [0, 24]}}',
    "two negative sides": entry(shape=[-2, -3]),
    "a truth for a side": entry(shape=[True, 6]),
    "a fraction for a side": entry(shape=[2.5, 3]),
    "many sides": entry(shape=[2**62] * 400),
    "a text for an entry": '{"a": "b"}',
    "three offsets": entry(data_offsets=[0, 12, 24]),
    "a dtype that acts on a terminal": entry(dtype="\x1b[31m"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors") as caught:
        read_header(safetensors(tmp_path, HEADERS[name]))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 400


def gguf(folder: Path, *pairs: bytes) -> Path:
    path = folder / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs) + b"\0" * 64)
    return path


def pair(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


ALIGNMENTS = {
    "zero": pair("general.alignment", 4, struct.pack("<I", 0)),
    "a text": pair("general.alignment", 8, struct.pack("<Q", 3) + b"abc"),
    "infinite": pair("general.alignment", 6, struct.pack("<f", float("inf"))),
    "a list": pair("general.alignment", 9, struct.pack("<IQI", 4, 1, 32)),
    "deep": pair("a", 9, struct.pack("<IQ", 9, 1) * 3_000),
}


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_a_gguf_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"a\.gguf"):
        read_header(gguf(tmp_path, ALIGNMENTS[name]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@steady(60)
@given(st.fixed_dictionaries({}, optional={key: VALUES for key in ("dtype", "shape", "data_offsets")}) | VALUES, VALUES)
def test_any_entry_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, told: Any, metadata: Any) -> None:
    path = safetensors(tmp_path_factory.mktemp("fuzz"), json.dumps({"a": told, "__metadata__": metadata}))
    try:
        read_header(path)
    except CheckpointError:
        pass


CONFIG = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128,
    "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "initial_context_length": 4096,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0},
}  # fmt: skip


def test_the_config_below_is_a_good_one() -> None:
    assert text_encoder_params(CONFIG, "x").num_hidden_layers == 4


@steady(150)
@given(st.sampled_from([*CONFIG, "lens_template", "layer_types"]), VALUES)
def test_any_value_of_a_text_encoder_s_config_is_read_or_refused(key: str, value: Any) -> None:
    try:
        text_encoder_params(CONFIG | {key: value}, "config.json")
    except CheckpointError as error:
        assert len(str(error)) < 400


@steady(100)
@given(st.dictionaries(st.sampled_from(list(vars(VAEParams()))), VALUES, max_size=3))
def test_any_config_of_the_others_is_read_or_refused(config: dict[str, Any]) -> None:
    for read in (vae_params, transformer_params):
        try:
            read(config, "config.json")
        except CheckpointError:
            pass


@pytest.mark.parametrize("layers", [10**30, 2_000_000_000, 1_001])
def test_layers_without_end_take_no_memory(layers: int) -> None:
    with pytest.raises(CheckpointError, match="layers"):
        text_encoder_params(CONFIG | {"num_hidden_layers": layers}, "config.json")


def test_a_config_of_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_json(tmp_path / "config.json")


def test_an_index_that_names_a_shard_of_a_page_is_refused(tmp_path: Path) -> None:
    """`make fuzz` found it: the system's refusal of so long a name was an internal error."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "LensPipeline"}')
    index = json.dumps({"weight_map": {"a": "x" * 5000}})
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="is not there") as caught:
        diffusers(tmp_path)
    assert len(str(caught.value)) < 500


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_header(tmp_path / "a.gguf")


def test_a_list_as_long_as_its_file_takes_no_memory(tmp_path: Path) -> None:
    """Of bytes, which as Python's numbers would take eight times the file; a sparse file of 100 MB."""
    path = gguf(tmp_path, pair("x", 9, struct.pack("<IQ", 0, 90_000_000)))
    with path.open("ab") as file:
        file.truncate(100_000_000)
    with pytest.raises(CheckpointError, match="90,000,000 entries"):
        read_header(path)
