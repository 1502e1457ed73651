"""Low-rank updates in llama.cpp: applied for answers, and never seen by the features.

Why it can be trusted: the same updates, multiplied out in torch and added to the weights, make another GGUF; what the
adapted context says must be what that file says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from backend.cache.store import Store
from backend.checkpoints.write_gguf import write_text_encoder_gguf
from backend.errors import CheckpointError
from backend.lora.write_gguf import write_adapter_gguf
from backend.text.llama import LlamaModel
from backend.text.llama_library import Context, OpenGguf
from tests.backend import tiny_weights as tiny
from tests.backend.llama_models import CLOSED, answer, asked

Updates = dict[str, tuple[torch.Tensor, torch.Tensor]]
ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}


def random_updates(scale: float = 0.1) -> Updates:
    """Of every projection and every expert, rank 2, in numbers that float16 holds exactly enough."""
    generator = torch.Generator().manual_seed(3)
    state, found = tiny.random_text_encoder(), Updates()

    def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        *stack, outputs, inputs = shape
        down = torch.randn(*stack, 2, inputs, generator=generator) * scale
        return down.half().float(), (torch.randn(*stack, outputs, 2, generator=generator) * scale).half().float()

    found["output.weight"] = pair(*state["lm_head.weight"].shape)
    experts, width, inner = tiny.TEXT.num_local_experts, tiny.TEXT.hidden_size, tiny.TEXT.intermediate_size
    for i in range(tiny.TEXT.num_hidden_layers):
        for theirs, ours in ATTENTION.items():
            found[f"blk.{i}.{theirs}.weight"] = pair(*state[f"model.layers.{i}.self_attn.{ours}.weight"].shape)
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            found[f"blk.{i}.ffn_{name}_exps.weight"] = pair(experts, *shape)
    return found


def merged(updates: Updates) -> dict[str, torch.Tensor]:
    state = tiny.random_text_encoder()
    down, up = updates["output.weight"]
    state["lm_head.weight"] += up @ down
    for i in range(tiny.TEXT.num_hidden_layers):
        layer = f"model.layers.{i}"
        of = {name: up @ down for name, (down, up) in updates.items() if name.startswith(f"blk.{i}.")}
        for theirs, ours in ATTENTION.items():
            state[f"{layer}.self_attn.{ours}.weight"] += of[f"blk.{i}.{theirs}.weight"]
        for offset, name in ((0, "gate"), (1, "up")):
            part = of[f"blk.{i}.ffn_{name}_exps.weight"].transpose(1, 2)
            state[f"{layer}.mlp.experts.gate_up_proj"][:, :, offset::2] += part
        state[f"{layer}.mlp.experts.down_proj"] += of[f"blk.{i}.ffn_down_exps.weight"].transpose(1, 2)
    return state


def said(gguf: Path, ids: tuple[int, ...], adapter: Path | None = None) -> np.ndarray:
    model = OpenGguf(gguf, repack=False, gpu_layers=0)
    context = Context(model, len(ids), threads=1, exact=True, adapter=adapter)
    assert context.append(ids)
    logits = context.logits()
    context.close()
    model.close()
    return logits


def test_an_adapted_context_says_what_the_changed_weights_say(tmp_path: Path, random_gguf: Path) -> None:
    adapter, other = tmp_path / "reasoner.gguf", tmp_path / "merged.gguf"
    write_adapter_gguf(adapter, random_updates())
    write_text_encoder_gguf(other, merged(random_updates()), tiny.TEXT, tiny.small_tokenizer().to_str(), dtype="F32")
    with LlamaModel(random_gguf, threads=1) as model:
        ids = asked(model, "a cat")
    plain, adapted, wanted = said(random_gguf, ids), said(random_gguf, ids, adapter), said(other, ids)
    assert np.abs(adapted - wanted).max() < 5e-3 < 0.1 < np.abs(plain - wanted).max()


def test_features_are_the_same_to_the_last_bit(tmp_path: Path, random_gguf: Path) -> None:
    """Before an adapter was ever loaded, after, and between two answers with it."""
    adapter = tmp_path / "reasoner.gguf"
    write_adapter_gguf(adapter, random_updates())
    with LlamaModel(random_gguf, threads=1) as model:
        question, take = asked(model, "a cat"), (0, 2)
        ids = question[:40]
        before = model.hidden_states(ids, take)
        plain = answer(model, question, schema=None, temperature=0)
        adapted = answer(model, question, schema=None, temperature=0, adapter=adapter)
        assert torch.equal(model.hidden_states(ids, take), before)
        assert answer(model, question, schema=None, temperature=0) == plain != adapted
        assert torch.equal(model.hidden_states(ids, take), before)


def test_a_kept_beginning_belongs_to_its_adapter(tmp_path: Path, random_gguf: Path) -> None:
    """Another process finds it again; without the adapter, or with another, it is not taken."""
    adapters = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for path, scale in zip(adapters, (0.1, 0.3), strict=True):
        write_adapter_gguf(path, random_updates(scale))
    kept = Store(tmp_path / "kept", ".safetensors", 10**8, print)
    replies = []
    for store in (None, kept, kept):
        for adapter in (None, *adapters):
            with LlamaModel(random_gguf, threads=1, prefixes=store) as model:
                found = answer(
                    model, asked(model, "a cat"), schema=CLOSED, temperature=0, think_tokens=6, adapter=adapter
                )
            replies.append(found)
    assert replies[:3] == replies[3:6] == replies[6:] and len(set(map(str, replies))) == 3
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file() and path.stat().st_size > 1000]) == 3


def test_what_does_not_fit_is_refused(tmp_path: Path, random_gguf: Path) -> None:
    narrow, torn, down = tmp_path / "narrow.gguf", tmp_path / "torn.gguf", torch.ones(2, 48)
    write_adapter_gguf(narrow, {"blk.0.attn_q.weight": (down, torch.ones(128, 2))})
    torn.write_bytes(narrow.read_bytes()[:200])
    with LlamaModel(random_gguf, threads=1) as model:
        for path in (narrow, torn, tmp_path / "none.gguf"):
            with pytest.raises(CheckpointError, match=r"llama\.cpp cannot apply it") as caught:
                answer(model, asked(model, "a cat"), adapter=path)
            assert path.name in str(caught.value) and "ADAPTER=false" in (caught.value.hint or "")
        assert answer(model, asked(model, "a cat"), schema=CLOSED, temperature=0)
    for updates, says in (
        ({}, "no updates"),
        ({"a": (torch.ones(2, 4), torch.ones(4, 3))}, r"factors \[2, 4\] and \[4, 3\]"),
        ({"a": (torch.ones(2, 4) * torch.nan, torch.ones(4, 2))}, "float16 does not hold"),
        ({"a": (torch.ones(2, 4) * 1e6, torch.ones(4, 2))}, "float16 does not hold"),
    ):
        with pytest.raises(CheckpointError, match=says):
            write_adapter_gguf(tmp_path / "bad.gguf", updates)
    assert not (tmp_path / "bad.gguf").exists()
