"""The folder of a run is one process's alone, and of one kind; its checkpoints are read only as the run began."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backend.errors import CheckpointError, FileError, UsageError
from train.run.checkpoints import Found
from train.run.distributed import Ranks
from train.run.folder import Fact, RunFolder, alone

ALONE = Ranks(torch.device("cpu"))


def test_what_a_run_keeps_for_ever(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "here")
    facts = [Fact("seed", 1), Fact("data", "abc", "other data", "give it back")]
    found = Found(tmp_path, folder.state(facts), frozenset())
    folder.check(found, facts)
    folder.check(found, [*facts, Fact("more", 3), Fact("data", None)])  # what one of the two does not know
    with pytest.raises(CheckpointError, match="the run began with seed=1, this is seed=2"):
        folder.check(found, [Fact("seed", 2)])
    with pytest.raises(CheckpointError, match=r"the run began with other data$") as caught:
        folder.check(found, [Fact("data", "abd", "other data", "give it back")])
    assert caught.value.hint == "give it back"


def test_a_folder_is_of_one_kind(tmp_path: Path) -> None:
    for text, problem in (('{"kind": "here"}', False), ('{"kind": "there"}', True), ("{}", True), ("{", False)):
        (tmp_path / "config.json").write_text(text)
        assert (RunFolder(tmp_path, "here").problem() is not None) is problem
        if problem:
            with pytest.raises(UsageError, match="another kind of run"), RunFolder(tmp_path, "here").open(ALONE):
                pass
    with RunFolder(tmp_path / "new", "here").open(ALONE), pytest.raises(UsageError, match="another process"):
        with alone(tmp_path / "new"):
            pass


def test_a_run_folder_is_one_process_alone(tmp_path: Path) -> None:
    """Another process is refused while it lasts, and let in however it ended."""
    folder = tmp_path / "runs" / "new"
    code = (
        "import sys, pathlib, time; from train.run.folder import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "in\n"
        with pytest.raises(UsageError, match="another process is training in"), alone(folder):
            pass
        child.kill()
        child.wait()
    for _ in range(2):
        with alone(folder), pytest.raises(UsageError), alone(folder):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FileError, match="cannot write"), alone(tmp_path / "locked" / "run"):
        pass
