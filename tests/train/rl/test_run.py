"""Reinforcement learning on a tiny model: the loop, what resumes it, what it warns of and what it refuses.

Trusted because runs are held to an uninterrupted one bit for bit, networks to the same network without adapters or with
the file's, and gradients to one pass over all pairs at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from backend import presets
from backend.checkpoints.resolve import resolve_model
from backend.errors import CheckpointError, NetworkError, UsageError
from backend.loading import load_transformer
from tests.train.fine_tuning import CPU, ROOT, velocity
from tests.train.rl.small_run import LITTLE, Brightness, Dice, plan, rows
from train.judge.judge import Question
from train.lora.adapters import adapters, begin_with, read_start, with_adapters
from train.losses.rewards import Missing, Verdict
from train.rl import rollout, update
from train.rl.config import choose, refuse_distilled
from train.rl.epoch import never_differed
from train.rl.prompts import drawn
from train.rl.run import make_learner, run
from train.rl.views import Views
from train.run.distributed import Ranks
from train.run.network import choose_attention

NOTHING_HELD = {"evaluate__prompts": 0, "evaluate__scenes": 0}
KILLS = """
import os, signal, sys
from pathlib import Path
import torch._dynamo, torch.utils.tensorboard  # once, not in each child: 0.65 s
from tests.train.rl.small_run import LITTLE, Brightness, Dice, plan
from train.rl import rollout, run, update
from train.run import checkpoints

die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def at_call(module, name, number):
    original, calls = getattr(module, name), []
    def counted(*args, **named):
        calls.append(1)
        if len(calls) == number:
            die()
        return original(*args, **named)
    setattr(module, name, counted)

def judged(asked):
    if asked == 2 and "judge" in phase:
        die()

for phase in ("roll", "judge", "train", "save", "train again", "to the end"):
    child = os.fork()
    if not child:
        if phase == "roll":
            at_call(rollout, "draw", 2)
        elif phase == "train":
            at_call(update, "take_step", 2)
        elif phase == "save":
            at_call(checkpoints, "_put_in_place", 2)
        elif phase == "train again":
            at_call(update, "take_step", 4)
        run.run(plan(Path(sys.argv[1]), Path(sys.argv[2]), **LITTLE), judge=Dice(judged), control=Brightness())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    folders = sorted(path.name for path in Path(sys.argv[1]).glob("checkpoints/step-*"))
    print(phase, os.WIFSIGNALED(status) and os.WTERMSIG(status), *folders, sep=",")
"""


def files_of(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    checkpoint = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    state = [load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    return load_file(run_dir / "lora.safetensors"), {name: t for part in state for name, t in part.items()}


def test_killed_in_every_phase_it_equals_an_uninterrupted_run(tmp_path: Path, tiny: Path) -> None:
    """SIGKILL while it draws, while it is judged, between two gradient steps, before a checkpoint has its name."""
    judge = Dice()
    whole = plan(tmp_path / "whole", tiny, **LITTLE)
    assert run(whole, judge=judge, control=Brightness()).epoch == 3
    cut = tmp_path / "cut"
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(cut), str(tiny)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    phases = [line.split(",") for line in done.stdout.splitlines() if line.count(",") > 0]
    assert [phase[:2] for phase in phases] == [
        ["roll", "9"], ["judge", "9"], ["train", "9"], ["save", "9"], ["train again", "9"], ["to the end", "False"],
    ]  # fmt: skip
    assert [phase[2:] for phase in phases[2:5]] == [[], ["step-00000001"], ["step-00000001", "step-00000002"]]
    assert rows(cut) == rows(whole.run_dir) and rows(cut)[-1]["step"] == 3
    for ours, theirs in zip(files_of(cut), files_of(whole.run_dir), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # A second judge, whose scores are not the reward, says of the same held-out pictures what it always says.
    assert all(0 < row["held_control_at_3"] < 1 for row in rows(cut) if "held_right_at_3" in row)
    assert len((cut / "control.jsonl").read_text().splitlines()) == judge.asked - 3 * 2 * 4
    # Of each evaluation there is an adapter, and the newest is what the run ends with.
    steps = sorted((whole.run_dir / "adapters").iterdir())
    assert [path.name for path in steps] == ["epoch-000002.safetensors", "epoch-000003.safetensors"]
    first, last, newest = (load_file(path) for path in (*steps, whole.run_dir / "lora.safetensors"))
    assert all(torch.equal(last[name], newest[name]) for name in newest)
    assert any(not torch.equal(first[name], newest[name]) for name in newest)
    # Nothing was asked twice, whatever was killed.
    journals = [(folder / "verdicts.jsonl").read_text().splitlines() for folder in (cut, whole.run_dir)]
    assert sorted(journals[0]) == sorted(journals[1]) and len(journals[1]) == judge.asked
    assert not list(cut.glob("rollouts/*")), "what is over takes no room"


def test_what_is_learned_ships_as_a_lora_and_the_reference_is_the_model_itself(tmp_path: Path, tiny: Path) -> None:
    config = plan(tmp_path / "run", tiny, optim__ema_decay=None, epochs=1, evaluate__every=9, export_dtype="float32")
    told: list[str] = []
    path = run(config, told.append, Dice()).path
    assert not any("same policy" in line for line in told)  # the first inner step is by definition
    files = resolve_model(str(tiny))
    shipped, base = with_adapters(config, files, CPU), load_transformer(files, torch.float32, CPU)
    choose_attention(base, CPU)
    begin_with(shipped, read_start(str(path), config, files.preset.params.dit))
    views = Views(shipped)
    with views.reference():
        assert torch.equal(velocity(shipped), velocity(base))
    assert not torch.equal(velocity(shipped), velocity(base)), "it learned something"
    _, state = files_of(config.run_dir)
    for name, adapter in adapters(shipped):  # the file is what was trained, and the old policy lags behind it
        trained, down = state[f"model.{name}.up_OR"], state[f"model.{name}.down_RI"]
        torch.testing.assert_close(adapter.up_OR @ adapter.down_RI, trained @ down, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(state[f"old.{name}.up_OR"], (1 - 0.002) * trained, rtol=1e-5, atol=1e-9)


def test_current_and_old_are_one_policy_in_the_first_inner_step_and_a_whole_epoch_of_it_is_a_warning(
    tmp_path: Path, tiny: Path
) -> None:
    told: list[str] = []
    run(plan(tmp_path / "copy", tiny, nft__gradient_steps=1, nft__old="copy", **NOTHING_HELD), told.append, Dice())
    warnings = [line for line in told if "the same policy in every gradient step" in line]
    assert [line.split(":")[0] for line in warnings] == ["epoch 1", "epoch 2"]  # not of the run's first step
    two = plan(tmp_path / "two", tiny, nft__gradient_steps=2, nft__old="copy", **NOTHING_HELD)
    told.clear()
    run(two, told.append, Dice())
    assert not any("same policy" in line for line in told)
    for row in rows(two.run_dir):
        assert row["on_policy_steps"] == 1 and row["deviation"] > 0 and row["norm_ratio"] == pytest.approx(1, abs=0.01)
    first = update.StepTaken(same=True, pairs=3)
    moved = update.StepTaken(same=False, pairs=3, deviation=1e-9)
    assert [never_differed(steps, taken) for steps, taken in (([first], 1), ([first], 2), ([first, moved], 2))] == [
        False, True, False,
    ]  # fmt: skip


def test_views_exchange_nothing_for_good(tiny: Path, tmp_path: Path) -> None:
    config = plan(tmp_path, tiny)
    network = with_adapters(config, resolve_model(str(tiny)), CPU)
    views = Views(network)
    begun = velocity(network)
    assert views.same
    with torch.no_grad():
        for _, adapter in adapters(network):
            adapter.up_OR.add_(0.05)
    moved, sha256 = velocity(network), views.old_sha256
    assert not views.same and not torch.equal(moved, begun)
    with views.old():
        assert torch.equal(velocity(network), begun) and not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), views.reference():
        raise ZeroDivisionError
    assert torch.equal(velocity(network), moved)
    views.follow(1.0)
    assert views.old_sha256 == sha256
    views.follow(0.0)
    assert views.same and views.old_sha256 != sha256


def steps_of(tiny: Path, tmp_path: Path, **fields: Any) -> tuple[list[update.StepTaken], list[Tensor]]:
    """Two gradient steps on pictures of noise; the gradients of the second."""
    config = plan(tmp_path, tiny, learning_rate=1e-3, **fields)
    files = resolve_model(str(tiny))
    network = with_adapters(config, files, CPU)
    learner, views = make_learner(config, network, Ranks(CPU)), Views(network)
    groups = rollout.plan(config, files.preset, drawn.make(40, 0)[0], 0)
    generator = torch.Generator().manual_seed(3)
    latents = [torch.randn(4, g.grid[0] * g.grid[1], 128, generator=generator) for g in groups]
    params = files.preset.params
    width = len(params.dit.selected_layer_index), params.text.hidden_size
    texts = {g.prompt.prompt: torch.randn(3 + i, *width, generator=generator) for i, g in enumerate(groups)}
    r_GK, counted_GK = torch.rand(3, 4, generator=generator), torch.ones(3, 4).bool()
    epoch = update.EpochPictures(0, groups, latents, r_GK, counted_GK, texts)
    said = [update.take_step(config, views, learner, epoch, p, 1e-3) for p in update.pairs(config, counted_GK, 0)]
    return said, [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_a_step_does_not_depend_on_how_it_is_cut_into_passes(tiny: Path, tmp_path: Path) -> None:
    terms = {"nft__kl_weight": 0.5, "nft__norm_hinge": 2.0, "nft__guidance": 2.0}
    whole, wanted = steps_of(tiny, tmp_path, machine__micro_batch=None, **terms)
    cut, found = steps_of(tiny, tmp_path, machine__micro_batch=1, **terms)
    assert [step.same for step in whole] == [True, False] and whole[0].deviation == 0 < whole[1].deviation
    for ours, theirs in zip(cut, whole, strict=True):
        for name in ("policy", "kl", "deviation", "norm_ratio", "hinge", "grad_norm"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=2e-3, abs=1e-7), name
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-5)


def test_every_counted_picture_is_trained_once_at_its_times(tmp_path: Path, tiny: Path) -> None:
    config = plan(tmp_path, tiny, nft__gradient_steps=2)
    counted = torch.tensor([[True, True, False, True], [False] * 4, [True] * 4])
    steps = update.pairs(config, counted, 5)
    each = [pair for step in steps for pair in step]
    assert len(each) == len(set(each)) == 7 * 2 and {(p.place, p.index) for p in each} == {
        (int(g), int(k)) for g, k in counted.nonzero()
    }
    assert [len(step) for step in steps] == [8, 6] and steps == update.pairs(config, counted, 5)
    # Groups have the guidances in turn, and other ones in the next epoch.
    preset, everything = resolve_model(str(tiny)).preset, drawn.make(40, 0)[0]
    each_epoch = [[g.guidance for g in rollout.plan(config, preset, everything, epoch)] for epoch in (0, 1)]
    assert each_epoch == [[1.0, 3.0, 1.0], [3.0, 1.0, 3.0]]
    assert steps != update.pairs(config, counted, 6) and update.pairs(config, torch.zeros(3, 4).bool(), 5) == []


def test_a_judge_that_is_down_pauses_the_run_and_loses_nothing(tmp_path: Path, tiny: Path) -> None:
    waited: list[str] = []
    gone = Verdict(missing=Missing.UNREACHABLE)
    config = plan(tmp_path / "run", tiny, epochs=1, **NOTHING_HELD, judging__pauses=(0.0, 0.0))
    down = Dice(lambda asked: gone if asked > 4 else None)
    with pytest.raises(NetworkError, match=r"failed at 67% of 12 pictures \(8 unreachable\)") as caught:
        run(config, waited.append, down)
    assert caught.value.exit_code == 3 and sum("asking for these again" in line for line in waited) == 2
    assert down.asked == 12 + 8 + 8 and len(list(config.run_dir.glob("rollouts/*/*"))) == 3
    assert (config.run_dir / "lora.safetensors").is_file(), "whenever it stops there is an adapter"

    drawn: list[int] = []
    up = Dice(lambda asked: gone if asked == 1 else drawn.append(asked))
    assert run(config, waited.append, up).epoch == 1
    assert up.asked == 8  # the four verdicts that were there are not asked for again
    (row,) = rows(config.run_dir)
    assert row["missing"] == row["missing_unreachable"] == 1
    settled = [json.loads(line) for line in (config.run_dir / "verdicts.jsonl").read_text().splitlines()]
    assert sum(line["missing"] == "unreachable" for line in settled) == 1


def test_drawing_goes_on_while_pictures_are_judged(tmp_path: Path, tiny: Path) -> None:
    """A judge that answers nobody before it has seen the epoch's last picture."""
    waiting: list[Future[Verdict]] = []

    class Slow(Dice):
        def submit(self, picture: Image.Image, question: Question) -> Future[Verdict]:
            said, future = super().submit(picture, question), Future[Verdict]()
            waiting.append(said)
            answers.append(future)
            if len(answers) == 12:
                for told, asked in zip(waiting, answers, strict=True):
                    asked.set_result(told.result())
            return future

    answers: list[Future[Verdict]] = []
    # Where drawing waits for a verdict, none ever comes: then this ends it.
    end = Timer(60, lambda: [one.set_exception(TimeoutError()) for one in answers if not one.done()])
    end.start()
    try:
        assert run(plan(tmp_path / "run", tiny, epochs=1, **NOTHING_HELD), judge=Slow()).epoch == 1
    finally:
        end.cancel()


def test_a_group_is_drawn_anew_only_where_something_about_it_changed(tmp_path: Path, tiny: Path) -> None:
    config = plan(tmp_path, tiny)
    first, second, *_ = rollout.plan(config, resolve_model(str(tiny)).preset, drawn.make(40, 0)[0], 0)
    made = {"policy": "a"}
    x0 = torch.randn(4, first.grid[0] * first.grid[1], 128)
    shelf = rollout.Shelf(tmp_path, 0, made)
    assert torch.equal(shelf.get(first, lambda: x0), x0)

    def never() -> Tensor:
        raise AssertionError("it is there")

    assert torch.equal(rollout.Shelf(tmp_path, 0, made).get(first, never), x0)
    for other, group in ((made, second), ({"policy": "b"}, first)):
        with pytest.raises(AssertionError):
            rollout.Shelf(tmp_path, 0, other).get(group, never)
    path = next(shelf.folder.iterdir())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(AssertionError):
        shelf.get(first, never)


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"distilled for 4 steps without guidance") as caught:
        choose("paper", tmp_path, ["model=lens-turbo"])
    assert "lens-base" in str(caught.value.hint)
    with pytest.raises(UsageError, match="distilled"):
        refuse_distilled(presets.get("lens-turbo"))
    with pytest.raises(UsageError, match="unknown recipe"):
        choose("best", None, [])
    with pytest.raises(UsageError, match="only 3 steps"):
        choose("nano-smoke", tmp_path, ["nft.times=4"])
    with pytest.raises(UsageError, match="no prompts were named"):
        run(choose("paper", tmp_path / "none", [f"model={tiny}", "judge.model=m", "rank=4"]))
    assert not (tmp_path / "none").exists(), "what is refused leaves no folder"
    config = plan(tmp_path / "run", tiny, epochs=1, **NOTHING_HELD)
    run(config, judge=Dice())
    with pytest.raises(CheckpointError, match=r"rollout\.groups"):
        run(plan(tmp_path / "run", tiny, rollout__groups=2, **NOTHING_HELD), judge=Dice())
