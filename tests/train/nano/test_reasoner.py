"""The adapter of Lens-Nano's reasoner: trained on beginnings computed once, exported as what was trained, resumed.

Why it can be trusted: the shared beginning is compared with whole conversations through the network's own `logits`, and
what is exported is multiplied out by hand.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from backend.model.text_encoder import LensGptOssEncoder
from tests.train.small_language import small_language
from train.nano import reasoner
from train.nano.reasoner import Adapter, AnswerReader, Batch, ReasonerConfig, make_batch, run

STEPS, STOP = 3, 1
small_language = functools.cache(small_language)


def network() -> LensGptOssEncoder:
    _, params = small_language()
    model = LensGptOssEncoder(replace(params, sliding_window=24), head=True)
    model.reset_parameters(torch.Generator().manual_seed(0), std=0.2)
    return model


def config(run_dir: Path, **changes: Any) -> ReasonerConfig:
    return ReasonerConfig(run_dir=run_dir, steps=STEPS, requests=2, rank=2, expert_rank=2, warmup=1, **changes)


def batch(step: int, run_dir: Path) -> Batch:
    tokenizer, params = small_language()
    return make_batch(step, tokenizer_json=tokenizer.to_str(), template=params.template, config=config(run_dir))


def merged(model: LensGptOssEncoder, adapter: Adapter) -> LensGptOssEncoder:
    """The network with the exported updates added to its weights, by their GGUF names."""
    theirs = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
    for name, (down, up) in adapter.updates().items():
        if name == "output.weight":
            assert model.lm_head is not None
            model.lm_head.weight.data += up @ down
            continue
        _, layer, rest, _ = name.split(".")
        block: Any = model.model.layers[int(layer)]
        if rest in theirs:
            getattr(block.self_attn, theirs[rest]).weight.data += up @ down
        elif rest == "ffn_down_exps":
            block.mlp.experts.down_proj.data += (up @ down).transpose(1, 2)
        else:
            block.mlp.experts.gate_up_proj.data[:, :, rest == "ffn_up_exps" :: 2] += (up @ down).transpose(1, 2)
    return model


@pytest.mark.parametrize("fresh", [True, False])
def test_the_reader_gives_what_the_changed_network_gives_of_whole_conversations(tmp_path: Path, fresh: bool) -> None:
    """Windows of 24 tokens end within the beginning, within the request, and across both."""
    given = batch(1, tmp_path)
    where = given.targets_KL >= 0
    adapter = Adapter(network().params, config(tmp_path))
    if not fresh:
        for number, parameter in enumerate(adapter.parameters()):
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    whole = torch.cat((given.shared_P.expand(len(where), -1), given.ids_KL), 1)
    before = torch.zeros(len(where), len(given.shared_P), dtype=torch.bool)
    with torch.no_grad():
        reader = AnswerReader(network(), adapter, torch.float32)
        mine = reader.logits(given.shared_P, given.ids_KL, given.lengths_K, where)
        plain = network().logits(whole, torch.cat((before, where), 1))
        theirs = merged(network(), adapter).logits(whole, torch.cat((before, where), 1))
    assert len(given.shared_P) > 24 and torch.allclose(mine, theirs, atol=1e-3)
    assert torch.allclose(mine, plain, atol=1e-3) == fresh


def test_a_batch_asks_for_the_answer_alone(tmp_path: Path) -> None:
    """Read back: what counts is the thought, the answer and the end; never the request."""
    tokenizer, _ = small_language()
    given = batch(5, tmp_path)
    assert tokenizer.decode(given.shared_P.tolist(), skip_special_tokens=False).endswith("<|start|>user<|message|>")
    for row, wanted, length in zip(given.ids_KL, given.targets_KL, given.lengths_K.tolist(), strict=True):
        start = int((wanted >= 0).nonzero()[0]) + 1
        asked, told = (
            tokenizer.decode(part.tolist(), skip_special_tokens=False) for part in (row[:start], row[start:length])
        )
        assert asked.endswith("<|end|>") and asked.count("<|") == 1
        assert told.startswith("<|start|>assistant<|channel|>analysis<|message|>") and told.endswith("<|return|>")
        assert '{"decision": "re' in told and torch.equal(wanted[start - 1 : length - 1], row[start:length])


def test_stopped_and_resumed_it_ends_where_it_ends_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the network itself is what it was, to the last bit."""
    tokenizer, _ = small_language()
    whole = run(config(tmp_path / "whole"), encoder := network(), tokenizer)
    for (name, mine), (_, theirs) in zip(encoder.named_parameters(), network().named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    usual, calls = F.cross_entropy, list[int]()

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == STOP + 1:
            raise KeyboardInterrupt
        return usual(*args, **options)

    parts = config(tmp_path / "parts", save_every=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reasoner.F, "cross_entropy", failing)
        run(parts, network(), tokenizer)
    again = run(parts, network(), tokenizer)
    for (name, mine), (_, theirs) in zip(again.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.abs().max() > 0
