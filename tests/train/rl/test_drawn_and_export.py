"""Prompts of Lens-Nano's world, held to the verifier and to the evaluation's own; adapters cut to a smaller rank."""

from __future__ import annotations

import pytest
import torch

from backend.errors import UsageError
from backend.lora.write import Factors
from train.evals.nano_prompts import prompts as eval_prompts
from train.evals.verifier.verify import check
from train.rl.export import cut
from train.rl.prompts.drawn import SHARES, make


def test_drawn_prompts_are_as_many_as_asked_for_and_each_item_has_its_rubric() -> None:
    prompts, expectations = make(400, 0)
    by_kind = {kind: sum(prompt.category == kind for prompt in prompts.prompts) for kind in SHARES}
    assert by_kind == {kind: round(400 * share) for kind, share in SHARES.items()}
    assert len({prompt.prompt for prompt in prompts.prompts}) == 400
    asked = {wording for prompt in eval_prompts() for wording in (prompt.brief, prompt.dense)}
    for prompt in prompts.prompts:
        items = check(expectations[prompt.id], ())  # of an empty picture: everything that is checked fails
        assert len(items) == len(prompt.rubrics) and prompt.prompt not in asked
        for item, rubric in zip(items, prompt.rubrics, strict=True):
            words = set(item.what.replace('"', " ").split()) - {"the", "word"}
            assert words <= set(rubric.text.replace('"', " ").replace("?", "").split()), (item.what, rubric.text)
    assert make(400, 0)[0].fingerprint == prompts.fingerprint != make(400, 1)[0].fingerprint


def test_more_prompts_than_the_world_has_are_refused() -> None:
    with pytest.raises(UsageError, match=r"different prompts about two things"):
        make(40_000, 0)


def test_a_cut_adapter_is_the_nearest_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Factors(torch.randn(6, 20, generator=generator), torch.randn(12, 6, generator=generator), 12.0)
    whole = one.alpha / one.rank * one.up_OR @ one.down_RI
    values = torch.linalg.svdvals(whole)
    for rank in (1, 3, 5):
        small = cut(one, rank)
        assert small.rank == rank
        update = small.alpha / small.rank * small.up_OR @ small.down_RI
        # Eckart and Young: no matrix of this rank is nearer than the root of the sum of the other squares.
        assert float((update - whole).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-4)
    assert cut(one, 6) is one
