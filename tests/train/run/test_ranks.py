"""One, two and three processes: the same run.

Trustworthy because the processes are real (gloo), nothing is mocked, and the yardstick is a run of one process that
knows nothing of the others: no process group, no sharding. Groups have nine shapes and two sizes, three of them on two
ranks, so ranks hold different shapes and different numbers of passes in most steps: a deadlock would be the time limit.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes

from tests.backend.tiny_weights import write_runnable
from tests.train import ranks
from tests.train.distill import small_run as small_distillation
from tests.train.drawn_folder import draw_folder
from tests.train.rl import small_run
from train import pretrain
from train.batches.random import RandomSource
from train.config import locate
from train.distill import run as distill
from train.lora import run as lora
from train.rl import run as rl
from train.run import checkpoints
from train.run.distributed import Ranks

ALONE = Ranks(torch.device("cpu"))
EXACT = 1e-5  # relative, of a loss: float32 sums in another order differ by about 1e-7
RESUMED = 1e-4  # the same after more steps on other ranks, with Muon's bfloat16 products; 2e-5 seen on one processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all jobs, and the same on one process."""
    root = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (root / "port").write_text(str(free.getsockname()[1]))
    write_runnable(root / "model")
    draw_folder(root / "photos")
    # A server that has imported everything once forks the three: a third of the time of three fresh interpreters.
    multiprocessing.set_forkserver_preload(["tests.train.ranks", "torch.utils.tensorboard", "torch._dynamo"])
    start_processes(ranks.child, (root,), nprocs=3, start_method="forkserver")
    pretrain.run(ranks.config(root / "one", steps=6))
    lora.run(ranks.fine_tuning(root, "lora-one"))
    rl.run(ranks.reinforcement(root, "rl-one"), judge=small_run.Brightness())
    for form in ("full", "adapters"):
        distill.run(ranks.distilling(root, form, "one"))
    return root


def curve(run: Path, *keys: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows for key in (keys or ("loss", "grad_norm", "align"))]


def state(run: Path) -> dict[str, torch.Tensor]:
    found = checkpoints.latest(run, ALONE)
    assert found is not None
    return {
        part + name: value for part in ("model", "ema") for name, value in checkpoints.read_whole(found, part).items()
    }


def test_ranks_hold_different_shapes() -> None:
    """What the other tests need to mean anything."""
    config = ranks.config(Path("unused"))
    source = RandomSource(config, torch.device("cpu"))
    steps = [source.groups(locate(config.stages, step)) for step in range(4)]
    assert any(len({grid for grid, _ in groups}) == 3 for groups in steps)
    assert any(len({len(refs) for _, refs in groups}) == 2 for groups in steps)


def test_two_processes_train_like_one(folder: Path) -> None:
    assert curve(folder / "two") == pytest.approx(curve(folder / "one")[: 4 * 3], rel=EXACT)
    assert len(curve(folder / "two")) == 4 * 3


def test_adapters_on_two_processes_learn_like_on_one(folder: Path) -> None:
    """Nothing is sharded there: each process has all adapters, and their gradients are averaged."""
    two, one = folder / "lora-two" / "run", folder / "lora-one" / "run"
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=EXACT) and len(curve(one, "loss")) > 4
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (two, one)]
    judged = [[row["validation"] for row in run if "validation" in row] for run in rows]
    assert judged[0] == pytest.approx(judged[1], rel=EXACT) and len(judged[0]) == 3
    ours, theirs = (load_file(run / "lora.safetensors") for run in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=name)
    kept = [{path.name for path in (run.parent / "cache").rglob("*.safetensors")} for run in (two, one)]
    assert kept[0] == kept[1]  # each encoded its share, and nothing twice or otherwise


def test_rewards_teach_two_processes_what_they_teach_one(folder: Path) -> None:
    """Whole groups are drawn and judged by one rank each, pairs are shared out: rewards, losses and adapters agree."""
    two, one, cut = (small_run.rows(folder / name) for name in ("rl-two", "rl-one", "rl-cut"))
    assert [row.keys() for row in two] == [row.keys() for row in one] and len(two) == 4
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=EXACT, abs=1e-6)
    assert two[2]["gradient_steps"] == 4 and two[2]["kl"] > 0
    ours, theirs, again = (load_file(folder / name / "lora.safetensors") for name in ("rl-two", "rl-one", "rl-cut"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=name)
    # A run of two ranks that ended and went on is the uninterrupted one, bit for bit.
    assert all(torch.equal(again[name], value) for name, value in ours.items())
    assert [row for row in cut if "loss" in row] == [row for row in two if "loss" in row]
    assert {path.name for path in (folder / "rl-two").glob("verdicts*")} == {"verdicts.jsonl", "verdicts-1.jsonl"}


@pytest.mark.parametrize("form", ["full", "adapters"])
def test_distilling_on_two_processes_is_as_on_one(folder: Path, form: str) -> None:
    """Three sharded networks and a discriminator that is not, or adapters on every process: the same to 1e-5."""
    two, one = folder / f"distil-{form}-two", folder / f"distil-{form}-one"
    ours, theirs = (small_distillation.rows(run) for run in (two, one))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [0, 1, 2, 2]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=EXACT), form
    assert {"loss_warm", "loss_fake", "loss_critic", "pull_dm", "held_distance"} <= {key for row in ours for key in row}
    found = [checkpoints.latest(run, ALONE) for run in (two, one)]
    for network in ("student", "fake", "critic"):
        mine, other = (checkpoints.read_whole(one, f"{network}.model") for one in found if one is not None)
        assert mine.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(mine[name], value, rtol=0, atol=EXACT, msg=f"{network} {name}")


def test_what_one_rank_meets_every_rank_raises(folder: Path) -> None:
    assert [(folder / f"met-{rank}").read_text() for rank in range(2)] == ["no space free some"] * 2


def test_one_rank_that_leaves_takes_the_others_with_it(folder: Path) -> None:
    """Instead of leaving them in a collective for ever."""
    assert [(folder / f"left-{rank}").read_text() for rank in range(2)] == ["RuntimeError True", "MemoryError True"]


def test_copies_small_passes_and_prefetching_change_nothing(folder: Path) -> None:
    assert curve(folder / "two-other-ways") == pytest.approx(curve(folder / "two"), rel=EXACT)
    ours, theirs = state(folder / "two-other-ways"), state(folder / "two")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3, msg=name)  # Muon rounds to bfloat16


def test_what_two_began_three_and_one_go_on_with(folder: Path) -> None:
    shutil.copytree(folder / "two", folder / "two-then-one")
    pretrain.run(ranks.config(folder / "two-then-one", steps=6))
    whole = curve(folder / "one")
    assert curve(folder / "two-then-one") == pytest.approx(whole, rel=RESUMED)
    assert curve(folder / "two-then-three") == pytest.approx(whole, rel=RESUMED)
    # Without the moments and the average the next steps would be others.
    torn = ranks.config(folder / "torn", steps=6)
    found = checkpoints.latest(folder / "two", ALONE)
    assert found is not None
    model = checkpoints.read_whole(found, "model")
    pretrain.run(replace(torn, stages=(replace(torn.stages[0], steps=2),)), initial=model)
    assert curve(folder / "torn", "grad_norm")[1] != pytest.approx(curve(folder / "one", "grad_norm")[5], rel=1e-3)


def test_a_checkpoint_of_two_is_one_network(folder: Path) -> None:
    """Written in slices of two ranks, read whole: the published names and shapes, and what one process wrote."""
    ours, alone = state(folder / "two"), state(folder / "one")
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in alone.items()}
    files = {path.name for path in checkpoints.folders(folder / "two")[-1].iterdir()}
    assert len(files) == 3 and "state.json" in files  # a file a rank, and no pickle
