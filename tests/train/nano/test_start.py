"""Lens-Nano's run folder: taken over from a finished model, or kept as it is.

Trustworthy because the models are real files, nothing is trained, and "as it is" compares every byte.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.errors import LensError, UsageError
from train.nano import run, vae
from train.recipes import NanoConfig, nano_smoke
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.folder import alone

FROZEN = ("vae", "language")  # parts that a run with start_from takes from there


@pytest.fixture(scope="module")
def other(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model but for a byte at the end of its autoencoder's file."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny, folder)
    with next(folder.glob("vae*")).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    return folder


def adopt(config: NanoConfig) -> list[str]:
    said: list[str] = []
    run.run(config, parts=FROZEN, say=said.append)
    return said


def reached(run_dir: Path, step: int) -> None:
    """A part's checkpoint of one number."""
    writer = checkpoints.Writer(run_dir, Ranks(torch.device("cpu")), keep=1, background=False)
    writer.save(step, {"model.a": torch.zeros(1)}, {})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def test_a_run_begins_from_one_model(tmp_path: Path, tiny: Path, other: Path) -> None:
    config = replace(nano_smoke(tmp_path / "run"), start_from=tiny)
    adopt(config)
    before = contents(config.run_dir)
    names = {"tokenizer.json", "vae.safetensors", "language.safetensors", "start.safetensors", "start.json"}
    assert before.keys() == names
    adopt(config)  # the same again
    said = adopt(replace(config, start_from=None))  # its frozen parts stay the model's, also unasked
    assert len(said) == 2 and all("the model the run began from" in line for line in said)
    with pytest.raises(UsageError, match="began from another model"):
        adopt(replace(config, start_from=other))
    assert contents(config.run_dir) == before


def test_cut_short_it_begins_with_the_same_model_only(tmp_path: Path, tiny: Path, other: Path) -> None:
    config = replace(nano_smoke(tmp_path / "run"), start_from=tiny)
    adopt(config)
    before = contents(config.run_dir)
    (config.run_dir / "start.safetensors").unlink()
    with pytest.raises(UsageError, match="began from another model"):
        adopt(replace(config, start_from=other))
    adopt(config)
    assert contents(config.run_dir) == before


@pytest.mark.parametrize("name", ["tokenizer.json", "vae.safetensors", "language.safetensors", "transformer"])
def test_a_run_that_began_from_nothing_takes_nothing_over(tmp_path: Path, tiny: Path, name: str) -> None:
    config = replace(nano_smoke(tmp_path / "run"), start_from=tiny)
    config.run_dir.mkdir()
    if name == "transformer":
        reached(config.run_dir / name, 3)
    else:
        (config.run_dir / name).write_bytes(b"its own")
    before = contents(config.run_dir)
    with pytest.raises(UsageError, match=f"began without start_from: it has a {name} of its own"):
        adopt(config)
    assert contents(config.run_dir) == before


def test_nothing_is_taken_over_beside_another_process(tmp_path: Path, tiny: Path) -> None:
    config = replace(nano_smoke(tmp_path / "run"), start_from=tiny)
    with alone(config.run_dir), pytest.raises(UsageError, match="another process is training"):
        adopt(config)
    assert not contents(config.run_dir)


def test_what_cannot_be_trained_leaves_no_folder(tmp_path: Path, tiny: Path) -> None:
    config = nano_smoke(tmp_path / "run")
    for wrong in (
        replace(config, start_from=tmp_path / "none"),
        replace(config, stages=(replace(config.stages[0], steps=0),)),
    ):
        with pytest.raises(LensError):
            run.run(wrong, say=lambda _: None)
        assert not config.run_dir.exists()


def test_a_finished_autoencoder_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformer has learned its latents at the scale that was measured then."""

    def trained(*_args: object, **_options: object) -> torch.nn.Module:
        ran.append(1)
        return torch.nn.Linear(1, 1)

    ran: list[int] = []
    monkeypatch.setattr(vae, "run", trained)
    config = nano_smoke(tmp_path / "run")
    for name, steps in (("vae", config.vae.steps), ("vae-whole", config.vae.whole_steps)):
        reached(config.run_dir / name, steps)
    run.run(config, parts=("vae",), say=lambda _: None)  # its file is not there yet
    assert len(ran) == 2
    run.run(config, parts=("vae",), say=lambda _: None)
    assert len(ran) == 2
    run.run(replace(config, vae=replace(config.vae, steps=config.vae.steps + 1)), parts=("vae",), say=lambda _: None)
    assert len(ran) == 4  # more was asked for
