"""GGUF writing and reading, judged by the two programs that must agree on it: llama.cpp and transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from backend.checkpoints.formats import open_text_encoder, open_transformer
from backend.checkpoints.headers import read_header
from backend.checkpoints.write_gguf import write_text_encoder_gguf, write_transformer_gguf
from backend.errors import CheckpointError
from backend.packing.ggml_layout import GGML_BLOCKS
from tests.backend import tiny_weights as tiny

TEXTS = [
    "Three red balloons over a green hill",
    "two  spaces, it's 12345 OPEN24 a/b\n\n  indented\tTab HELLOworld",
    "<|start|>user<|message|>a sign<|end|>",
    "naïve café — “quotes” 東京 🎈 Straße",
    " ",
]


def hugging_face_logits(state: dict[str, torch.Tensor], ids: list[int]) -> np.ndarray:
    """Logits of transformers' own GptOssForCausalLM in float32 with eager attention: the reference."""
    from transformers import GptOssConfig, GptOssForCausalLM

    p = tiny.TEXT
    config = GptOssConfig(
        vocab_size=p.vocab_size,
        hidden_size=p.hidden_size,
        num_hidden_layers=p.num_hidden_layers,
        num_attention_heads=p.num_attention_heads,
        num_key_value_heads=p.num_key_value_heads,
        head_dim=p.head_dim,
        intermediate_size=p.intermediate_size,
        num_local_experts=p.num_local_experts,
        num_experts_per_tok=p.num_experts_per_tok,
        sliding_window=p.sliding_window,
        rms_norm_eps=p.rms_norm_eps,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": p.rope_theta,
            "factor": p.rope_factor,
            "original_max_position_embeddings": p.rope_original_context,
            "beta_fast": p.rope_beta_fast,
            "beta_slow": p.rope_beta_slow,
            "truncate": p.rope_truncate,
        },
    )
    model = GptOssForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def llama_logits(path: Path, ids: list[int]) -> np.ndarray:
    from llama_cpp import GGML_TYPE_F32, Llama

    llama = Llama(
        str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32
    )
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], dtype=np.float32)


def write_text(path: Path, dtype: str, state: dict[str, torch.Tensor]) -> Path:
    write_text_encoder_gguf(path, state, tiny.TEXT, tiny.small_tokenizer().to_str(), dtype=dtype, chat_template="{{x}}")
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 2e-4), ("F16", 2e-2)])
def test_llama_cpp_agrees_with_transformers(tmp_path: Path, dtype: str, tolerance: float) -> None:
    """Longer than the sliding window and across experts; a wrong YaRN rounding, sink or gate order shows at once."""
    state = tiny.random_text_encoder()
    path = write_text(tmp_path / "text.gguf", dtype, state)
    for length, seed in ((1, 0), (9, 1), (60, 2)):
        ids = torch.randint(0, 480, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        ours, theirs = llama_logits(path, ids), hugging_face_logits(state, ids)
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < tolerance


def test_llama_cpp_tokenizes_like_the_tokenizers_library(tmp_path: Path) -> None:
    from llama_cpp import Llama

    path = write_text(tmp_path / "text.gguf", "F16", tiny.random_text_encoder())
    llama = Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = tiny.small_tokenizer()
    for text in [*TEXTS, *tiny.CORPUS]:
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == expected, text
    assert llama.token_eos() == tokenizer.token_to_id("<|return|>")


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2)])
def test_text_encoder_round_trip(tmp_path: Path, dtype: str, tolerance: float) -> None:
    state = tiny.random_text_encoder()
    source = open_text_encoder((write_text(tmp_path / "text.gguf", dtype, state),))
    assert source.params == tiny.TEXT
    assert set(source.names()) == set(state)
    for name, expected in state.items():
        read = source.tensor(name, torch.float32)
        assert read.shape == expected.shape
        assert (read - expected).abs().max() <= tolerance * expected.abs().max(), name


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_transformer_round_trip(tmp_path: Path, quant: str) -> None:
    state = tiny.random_transformer()
    path = tmp_path / "transformer.gguf"
    write_transformer_gguf(path, state, tiny.DIT, quant=quant, metadata={"general.name": "tiny"})
    table, header = open_transformer((path,)), read_header(path)
    assert header.metadata["general.architecture"] == "lens"
    assert header.metadata["general.name"] == "tiny"
    assert table.params == tiny.DIT
    assert set(table.names()) == set(state)
    tolerance = {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q4_0": 0.15}[quant]
    for name, expected in state.items():
        read = table.tensor(name, torch.float32)
        assert (read - expected).abs().max() <= tolerance * expected.abs().max(), name
    weight = gguf.GGUFReader(path).get_tensor(0)  # the reference reader accepts the file
    assert weight.name == "img_in.weight"
    assert weight.tensor_type.name == quant


def test_header_parser_agrees_with_the_reference_reader(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.gguf", "Q8_0", tiny.random_text_encoder())
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, int(t.data_offset), int(t.n_bytes)) for t in theirs.tensors] == [
        (t.name, t.start, t.nbytes) for t in ours.tensors.values()
    ]
    assert ours.metadata["tokenizer.ggml.tokens"] == theirs.fields["tokenizer.ggml.tokens"].contents()
    assert {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()} == GGML_BLOCKS


def test_writing_refuses_what_llama_cpp_would_run_differently(tmp_path: Path) -> None:
    state = tiny.random_text_encoder()
    tokenizer = tiny.small_tokenizer().to_str()
    path = tmp_path / "text.gguf"
    with pytest.raises(CheckpointError, match="swiglu_limit"):
        write_text_encoder_gguf(path, state, replace(tiny.TEXT, swiglu_limit=5.0), tokenizer)
    with pytest.raises(CheckpointError, match=r"lm_head"):
        write_text_encoder_gguf(path, {k: v for k, v in state.items() if "lm_head" not in k}, tiny.TEXT, tokenizer)
    with pytest.raises(CheckpointError, match="not finite"):
        write_text_encoder_gguf(
            path, state | {"model.norm.weight": torch.full((64,), float("nan"))}, tiny.TEXT, tokenizer
        )
    with pytest.raises(CheckpointError, match="float16"):
        write_transformer_gguf(
            path, tiny.random_transformer() | {"img_in.weight": torch.full((64, 128), 1e5)}, tiny.DIT, quant="F16"
        )
    assert list(tmp_path.iterdir()) == []  # nothing half-written
