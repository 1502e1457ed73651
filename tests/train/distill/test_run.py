"""The loop of distillation: what resumes it, what stops it, what it refuses, what its monitors see.

Trusted because runs that are killed are held to one that is not, bit for bit, and the monitors to pictures that were
spoilt on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from backend import presets
from backend.checkpoints.resolve import resolve_model
from backend.errors import CheckpointError, NumericsError, UsageError
from backend.loading import load_vae
from tests.train.distill.small_run import ALONE, LITTLE, plan, rows
from tests.train.fine_tuning import CPU, ROOT
from train.batches.encoders import encode_images
from train.distill.config import CaptionFile, Collapse, DrawnScenes, Watch, choose, refuse_distilled
from train.distill.pictures import Finite, open_pictures
from train.distill.run import run
from train.distill.watch import RULES, collapsed, compared
from train.rl.prompts import drawn, prompt_set
from train.run.batch import Group

KILLS = """
import os, signal, sys
from pathlib import Path
import torch._dynamo, torch.utils.tensorboard  # once, not in each child: 1.6 s
from tests.train.distill.small_run import LITTLE, plan
from train.distill import run, update
from train.run import checkpoints

def at_call(module, name, number, before=lambda *_: True):
    original, calls = getattr(module, name), []
    def counted(*args, **named):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **named)
    setattr(module, name, counted)

for phase, name, number in (
    ("warm", "learn_guidance", 2), ("fake", "learn_to_tell", 2), ("between", "learn_to_draw", 2), ("save", "", 1),
    ("to the end", "", 0),
):
    child = os.fork()
    if not child:
        if name:
            at_call(update, name, number)
        elif number:
            at_call(checkpoints, "_put_in_place", number)
        run.run(plan(Path(sys.argv[1]), Path(sys.argv[2]), **LITTLE))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    newest = sorted(path.name for path in Path(sys.argv[1]).glob("checkpoints/step-*"))[-1:]
    print(phase, os.WIFSIGNALED(status) and os.WTERMSIG(status), *newest, sep=",")
"""


def files_of(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    checkpoint = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    state = [load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    return load_file(run_dir / "lora.safetensors"), {name: t for part in state for name, t in part.items()}


def test_killed_in_every_phase_it_equals_an_uninterrupted_run(tmp_path: Path, tiny: Path) -> None:
    """SIGKILL in the warm stage, among the fake model's updates, between these and the student's, while it saves."""
    whole = plan(tmp_path / "whole", tiny, **LITTLE)
    assert run(whole).step == 4
    cut = tmp_path / "cut"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(cut), str(tiny)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    phases = [line.split(",") for line in done.stdout.splitlines() if line.count(",") > 0]
    assert [phase[1] for phase in phases] == ["9", "9", "9", "9", "False"], done.stdout
    assert [phase[-1][-1] for phase in phases] == ["1", "2", "3", "3", "4"]  # the newest checkpoint of each
    assert rows(cut) == rows(whole.run_dir) and rows(cut)[-1]["step"] == 4
    for ours, theirs in zip(files_of(cut), files_of(whole.run_dir), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    log = rows(whole.run_dir)
    assert [row["step"] for row in log if "held_score" in row] == [0, 3, 4]
    assert [row["step"] for row in log if "loss_warm" in row] == [1, 2]
    assert (whole.run_dir / "previews" / "0000004.png").exists()
    with pytest.raises(CheckpointError, match=r"another fake\.updates"):
        run(plan(tmp_path / "whole", tiny, fake__updates=3))


def test_the_fake_model_begins_as_the_warm_student_and_the_student_waits(tmp_path: Path, tiny: Path) -> None:
    config = plan(tmp_path, tiny, steps=1, fake__head_start=1, fake__learning_rate=0.0, warm__learning_rate=0.05)
    run(config)
    _, state = files_of(tmp_path)
    for name, value in state.items():
        if name.startswith("fake.model."):
            assert torch.equal(value, state[name.replace("fake.", "student.", 1)])
    assert "norm_student" not in rows(tmp_path)[-2] and "loss_fake" in rows(tmp_path)[-2]


def test_a_student_that_collapses_stops_the_run_and_keeps_what_was_best(tmp_path: Path, tiny: Path) -> None:
    config = plan(
        tmp_path, tiny, warm__steps=0, steps=8, learning_rate=1.0, targets=("io",), saving__validate_every=1,
        collapse=Collapse(),
    )  # fmt: skip
    with pytest.raises(NumericsError, match=r"step 1: the student collapsed: .*best weights, of step 0") as caught:
        run(config)
    assert "lora.safetensors" in str(caught.value) and "fake.learning_rate" in str(caught.value.hint)
    assert (tmp_path / "lora.safetensors").exists() and (tmp_path / "checkpoints" / "step-00000001").exists()


def test_each_monitor_sees_its_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = [torch.randn(3, 64, 8, generator=generator) for _ in range(4)]
    limits = Collapse()
    assert collapsed({**compared(teacher, teacher), "fake_ratio": 1.0}, limits) is None
    assert compared(teacher, teacher)["distance"] == 0
    spoilt = {
        "flat and grey": [0.4 * x for x in teacher],
        "over-saturated": [2.0 * x for x in teacher],
        "dark, bright or tinted": [x + 1.0 for x in teacher],
        "burn out": [torch.where(torch.rand(x.shape, generator=generator) < 0.05, 5.0, x) for x in teacher],
        "without bound": [2.0 * x for x in teacher],
        "lost their contents": [0.4 * x for x in teacher],
        "became one": [x[:1].expand_as(x) for x in teacher],
        "not finite or beyond": [x * float("nan") for x in teacher],
    }
    for words, pictures in spoilt.items():
        said = collapsed(compared(pictures, teacher), limits)
        assert said is not None and (words in said or words == "not finite or beyond"), (words, said)
    assert "does not follow" in str(collapsed({"fake_ratio": 3.0}, limits))
    assert {rule.number for rule in RULES} <= {*compared(teacher, teacher), "fake_ratio"}


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path, tiny: Path) -> None:
    for settings, said in (
        (["model=lens-turbo"], "has to know guidance"),
        (["form=adapters", "teacher=lens"], "views of one backbone"),
        (["quant=nf4"], "trains the weights themselves"),
        (["guidance=2"], "student.guidance"),
        (["steps=0"], "no steps"),
        (["machine.float8=true"], "no float8"),
    ):
        with pytest.raises(UsageError) as caught:
            choose("paper", tmp_path, settings)
        assert said in f"{caught.value} {caught.value.hint}", settings
    with pytest.raises(UsageError, match="unknown recipe"):
        choose("best", None, [])
    with pytest.raises(UsageError, match="exclude"):
        choose("paper", None, [], data=tmp_path, random=True)
    with pytest.raises(UsageError, match="distilled"):
        refuse_distilled(presets.get("lens-turbo"))
    with pytest.raises(UsageError, match=r"the teacher nano has another shape than .*num_layers 10 instead of 2"):
        run(plan(tmp_path / "run", tiny, form="full", teacher="nano"))
    with pytest.raises(UsageError, match="there are 2 blocks"):
        run(plan(tmp_path / "run", tiny, critic__taps=(2,)))
    with pytest.raises(UsageError, match="no captions were named"):
        run(choose("one-gpu", tmp_path / "run", [f"model={tiny}", "rank=4", "base=64"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_captions_of_drawn_scenes_with_teacher_made_pictures(tmp_path: Path, tiny: Path) -> None:
    """The whole way: scenes, features, real pictures, rules as the score; a second start makes nothing anew."""
    told: list[str] = []
    config = plan(
        tmp_path, tiny, data=DrawnScenes(count=4, real="teacher"), made__steps=2, warm__steps=0, steps=1, groups=1,
        watch=Watch(prompts=1, seeds=1, preview=0), fake__updates=1, saving__validate_every=5,
    )  # fmt: skip
    run(config, told.append)
    assert any(line.startswith("making 4 real pictures by the teacher") for line in told)
    kept = {path: path.read_bytes() for path in (tmp_path / "cache" / "real").glob("*.safetensors")}
    assert len(kept) == 4 and "held_right" in rows(tmp_path)[-1]
    told.clear()
    run(config, told.append)
    assert not any("making" in line for line in told) and all(path.read_bytes() == was for path, was in kept.items())


def test_real_pictures_of_data_are_the_drawn_scenes_and_every_caption_comes_once(tmp_path: Path, tiny: Path) -> None:
    config = plan(tmp_path, tiny, data=DrawnScenes(count=6), batch=2, groups=1, watch__prompts=1)
    files = resolve_model(str(tiny))
    pictures, _, _ = open_pictures(config, files, ALONE, lambda _: None)
    pictures.prepare(None)
    seen = [int(str(ref)) for number in range(3) for _, refs in pictures.groups(number) for ref in refs]
    assert sorted(seen) == list(range(6)) and pictures.groups(7) == pictures.groups(7)
    ((grid, refs),) = pictures.groups(1)
    loaded = pictures.load(1, Group(grid, tuple(refs), (0, 1), (0.5, 0.5)))
    assert isinstance(pictures, Finite)
    drawn = pictures.rows[int(str(refs[0]))].picture
    assert drawn is not None
    vae = load_vae(files, torch.float32, CPU)
    expected = encode_images(vae, np.array(drawn(64, 64).convert("RGB"))[None], CPU)
    assert torch.equal(loaded.x0_BNC[:1], expected)


def test_prompts_of_a_file_need_no_data(tmp_path: Path, tiny: Path) -> None:
    everything, _ = drawn.make(40, 0)
    path = tmp_path / "p.jsonl"
    prompt_set.write(path, everything)
    config = plan(tmp_path, tiny, data=CaptionFile(path=path), batch=2, groups=1, watch__prompts=1)
    pictures, shown, _ = open_pictures(config, resolve_model(str(tiny)), ALONE, lambda _: None)
    assert isinstance(pictures, Finite) and pictures.by_teacher and len(shown) == 1
    asked = {row.text for row in pictures.rows}
    assert shown[0].prompt not in asked and asked < {prompt.prompt for prompt in everything.prompts}
