"""The comparison of captions: what its table says of results whose answer is known by hand. Nothing is trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.caption_ablation import ARMS, WORDINGS, Job, spread, table
from train.evals.nano import EvalFolder, EvalResult


def test_the_interval_of_three_runs_is_students() -> None:
    # 1, 2, 3: standard deviation 1, of the mean 1/sqrt(3); the 97.5 % point of Student's t with two degrees is 4.303.
    assert spread([1.0, 2.0, 3.0]) == "2.0000 ± 2.4843"
    assert spread([1.5]) == "1.5000", "one run says nothing about its spread"


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, list[Job]]:
    """Two seeds of every arm, ten prompts: dense has 8 right, mixed 5, brief 2, whatever the seed and wording."""
    right = {"dense": 8, "mixed": 5, "brief": 2}
    jobs = {arm: [Job(arm, seed, argparse.Namespace(out=tmp_path)) for seed in (0, 1)] for arm in ARMS}
    for arm, of in jobs.items():
        for job in of:
            for wording in WORDINGS:
                folder = EvalFolder(job.results(wording))
                folder.open({"prompts": wording})
                for n in range(10):
                    folder.add(
                        EvalResult(
                            id=f"colors-{n:02d}", kind="colors", index=0, asked="", prompt="", seed=1000 * n,
                            right=n < right[arm], reason="", found=[], seconds=0.1,
                        ),
                        None,
                    )  # fmt: skip
            rows = [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 1.0, "validation": 0.25 + job.seed / 4}]
            (job.folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return jobs


def test_seeds_are_pooled_and_arms_compared_prompt_by_prompt(arms: dict[str, list[Job]]) -> None:
    lines = list(table(arms))
    assert [line.split()[:2] for line in lines[1:4]] == [[arm, "0.3750"] for arm in ARMS]
    for at in (4, 4 + 1 + len(ARMS) + 3):  # brief wording, then dense
        told = {line.split()[0]: line for line in lines[at + 1 : at + 1 + len(ARMS)]}
        assert told["dense"].split()[1] == "0.8000" and told["dense"].endswith("16/20")
        assert told["brief"].endswith("4/20") and told["mixed"].endswith("10/20")
        pairs = [line for line in lines[at:] if "against" in line][:3]
        assert pairs[0].startswith("  brief against dense") and "+0 -12 of 20" in pairs[0]
        assert pairs[2].startswith("  mixed against brief") and "+6 -0 of 20" in pairs[2]
