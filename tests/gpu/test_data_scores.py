"""Learned filters on the GPU: bfloat16 there, float32 on the CPU, the same pictures and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.train.data.test_learned import (
    _pictures,  # pyright: ignore[reportPrivateUsage]
    _rows,  # pyright: ignore[reportPrivateUsage]
    _settings,  # pyright: ignore[reportPrivateUsage]
    folders,  # noqa: F401  a fixture
)
from train.data.score import find_models, score_rows
from train.data.scores.learned import pick_device


def test_scores_on_the_gpu_are_those_of_the_cpu(folders: dict[str, Path]) -> None:  # noqa: F811
    rows, data = _rows(_pictures())
    models = find_models(_settings(folders))
    on_cpu, on_gpu = (
        score_rows(rows, (), models, read=lambda row: data[row["path"]], device=device) for device in ("cpu", "auto")
    )
    assert pick_device("auto").type == "cuda"
    for name, table in on_cpu.items():
        for column in table.column_names[1:]:
            expected = [value for value in table[column].to_pylist() if value is not None]
            found = [value for value in on_gpu[name][column].to_pylist() if value is not None]
            # The CPU in bfloat16 differs from itself in float32 by 0.0097 at most, of these pictures and weights.
            assert np.allclose(np.asarray(found, float), np.asarray(expected, float), atol=0.03), (name, column)


def test_workers_share_the_gpus_in_turn(monkeypatch) -> None:
    import torch

    count = torch.cuda.device_count()
    for worker in range(2 * count):
        monkeypatch.setenv("LENS_WORKER", str(worker))
        assert pick_device("auto").index == worker % count
