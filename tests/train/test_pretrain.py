"""The pre-training loop on networks of a few thousand parameters, on the CPU.

Trustworthy because nothing is mocked: real scenes, a real tokenizer, autoencoder, language model and transformer; and
because the claims are exact: a resumed run must equal an uninterrupted one bit for bit, a dropped caption must equal
the unconditional call, and the validation loss must not depend on when it is asked.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backend.errors import FileError, LensError, UsageError
from backend.model.autoencoder import build_vae
from backend.model.text_encoder import LensGptOssEncoder
from backend.params import DiTParams, VAEParams
from tests.train.changed import changed
from tests.train.small_language import small_language
from train import pretrain
from train.batches import scenes
from train.batches.encoders import Frozen
from train.config import Cluster, Layouts, MuonOptim, PretrainConfig, Saving, SceneData, SceneMix, Stage
from train.losses import flow
from train.nano import language, vae
from train.run import checkpoints, network, validate
from train.run.batch import Batch, Loaded
from train.run.distributed import Ranks
from train.run.folder import alone
from train.run.step import transformer_losses
from train.world import dialogues
from train.world.dialogues import caption_of
from train.world.scene_text import Stating, brief_stating, kind_name
from train.world.scenes import LAYOUTS, Background, Scene, Thing, is_held_out, sample_scene

DIT = DiTParams(
    num_layers=2,
    num_attention_heads=1,
    attention_head_dim=32,
    axes_dims_rope=(4, 14, 14),
    enc_hidden_dim=32,
    selected_layer_index=(0, 1),
    mlp_hidden_dim=48,
)


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    """Random networks: what they mean does not matter here, only that everything passes through them."""
    torch.manual_seed(0)
    tokenizer, text = small_language()
    encoder = LensGptOssEncoder(text)
    encoder.reset_parameters(torch.Generator().manual_seed(0), std=0.2)
    vae = build_vae(
        VAEParams(block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False)
    )
    return Frozen(vae=vae.requires_grad_(False), encoder=encoder.requires_grad_(False), tokenizer=tokenizer)


def config(run_dir: Path, frozen: Frozen, steps: int = 6) -> PretrainConfig:
    return PretrainConfig(
        params=DIT,
        template=frozen.encoder.params.template,
        run_dir=run_dir,
        stages=(Stage(base=64, steps=steps, batch=2, learning_rate=1e-2, square_share=0.5),),
        data=SceneData(per_round=4, encode_batch=2, passes=1),
        optim=MuonOptim(betas=(0.9, 0.99), ema_decay=0.999, warmup=2),
        machine=Cluster(workers=0, compile=False),
        saving=Saving(save_every=2, log_every=1),
    )


def drawing(plan: PretrainConfig) -> scenes.Scenes:
    """What a source of its scenes has."""
    assert isinstance(plan.data, SceneData)
    blocks = plan.params.selected_layer_index
    return scenes.Scenes(plan.data, plan.seed, plan.machine.workers, plan.template, blocks, torch.device("cpu"))


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("align", [0.0, 0.1])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, frozen: Frozen, align: float) -> None:
    def plan(folder: Path) -> PretrainConfig:
        return changed(config(folder, frozen), {"data.align.weight": align, "data.align.block": 0})

    whole = weights(pretrain.run(plan(tmp_path / "whole"), frozen))

    folder = tmp_path / "cut"
    pretrain.run(plan(folder), frozen)
    # As after a crash between two checkpoints: the newest is gone, and the log is ahead of what is left.
    newest = checkpoints.folders(folder)[-1]
    assert newest.name == "step-00000006"
    shutil.rmtree(newest)
    assert [path.name for path in checkpoints.folders(folder)] == ["step-00000004"]
    resumed = weights(pretrain.run(plan(folder), frozen))

    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    timed = ("seconds", "pictures_per_s", "tflops", "eta_s")
    rows = [[{k: v for k, v in json.loads(line).items() if k not in timed} for line in log] for log in logs]
    assert rows[0] == rows[1] and len(rows[0]) == 6  # all numbers of every line but the times


def test_a_run_may_be_aligned_later(tmp_path: Path, frozen: Frozen) -> None:
    plan = config(tmp_path / "run", frozen, steps=2)
    pretrain.run(plan, frozen)
    more = config(tmp_path / "run", frozen, steps=3)
    pretrain.run(changed(more, {"data.align.weight": 0.1, "data.align.block": 0}), frozen)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["align" in row for row in rows] == [False, False, True]


def test_training_lowers_the_validation_loss(tmp_path: Path, frozen: Frozen) -> None:
    """A wrong sign of the target or a network that does not learn fails this."""
    plan = changed(config(tmp_path / "run", frozen, steps=60), {"data.per_round": 16, "data.passes": 4})
    more = changed(plan, {"data.per_round": 8})
    held = scenes.SceneSource(drawing(more), frozen).held(plan.stages[0])
    model = pretrain.run(plan, frozen)
    fresh, _ = pretrain.make_learners(plan, Ranks(torch.device("cpu")))

    def judged() -> float:
        losses = partial(transformer_losses(flow.losses, fresh.ranks, plan.machine.compute), fresh.average)
        return validate.validate(losses, validate.at_times_in_turn(held, fresh.ranks.device))["validation"]

    first = judged()
    assert fresh.average is not None
    fresh.average.load_state_dict(model.state_dict())
    last = judged()
    assert judged() == last
    assert last < 0.93 * first


def test_validation_looks_at_all_eight_times_whatever_the_shapes() -> None:
    """Sixteen buckets of one held-out picture each: twice every time, not sixteen times the first."""
    times: list[float] = []

    def noted(batch: Batch) -> Tensor:
        times.extend(batch.t_B.tolist())
        return torch.ones(len(batch.t_B))

    one = Loaded(torch.zeros(1, 4, 128), torch.zeros(1, 1, 2, 32), torch.ones(1, 1, dtype=torch.bool), ("held",))
    turns = validate.at_times_in_turn([((2, 2), one)] * 16, torch.device("cpu"))
    assert validate.validate(noted, turns) == {"validation": 1}
    assert sorted(times) == sorted([(i + 0.5) / 8 for i in range(8)] * 2)


def test_each_shape_has_its_validation_loss() -> None:
    """Three pictures of two shapes at all eight times, against means taken by hand."""
    held = [
        (grid, Loaded(torch.zeros(1, 4, 1), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool), (name,)))
        for grid, name in (((2, 2), "a"), ((1, 4), "b"), ((2, 2), "c"))
    ]

    def losses(batch: Batch) -> Tensor:
        return batch.t_B * {"a": 1.0, "b": 2.0, "c": 5.0}[batch.names[0]]

    for at_once in (1, 3, 8):
        found = validate.validate(losses, validate.at_all_times(held, torch.device("cpu"), at_once))
        assert found == pytest.approx({"validation": 4 / 3, "validation_64x16": 1.0, "validation_32x32": 1.5})


def test_a_round_too_small_for_a_batch_is_refused(tmp_path: Path, frozen: Frozen) -> None:
    plan = changed(config(tmp_path / "run", frozen), {"data.per_round": 2, "data.encode_batch": 2})
    with pytest.raises(UsageError, match="fills no batch of 3"):
        pretrain.run(dataclasses.replace(plan, stages=(dataclasses.replace(plan.stages[0], batch=3),)), frozen)


def test_every_rank_tells_what_it_alone_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(error: LensError) -> None:
        def run(*_arguments: object, **_options: object) -> None:
            raise error

        monkeypatch.setattr(pretrain, "run", run)
        with pytest.raises(SystemExit) as ended:
            pretrain.main()
        assert ended.value.code == error.exit_code

    monkeypatch.setattr(sys, "argv", ["train.pretrain", "--recipe", "nano-smoke"])
    monkeypatch.setenv("RANK", "3")
    failing(FileError("a tar is damaged"))
    assert capsys.readouterr().err == "rank 3: error: a tar is damaged\n"
    failing(UsageError("a mistake that every rank sees"))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    failing(UsageError("a mistake", hint="do this"))
    assert capsys.readouterr().err == "error: a mistake\nhint: do this\n"


def test_a_dropped_caption_is_the_unconditional_call() -> None:
    torch.manual_seed(1)
    model = network.build(DIT).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 12, 128), torch.rand(2)
    text = torch.randn(2, 5, 2, 32)
    with torch.no_grad():
        dropped = model(x, t, text, (3, 4), torch.zeros(2, 5, dtype=torch.bool))
        without = model(x, t, text[:, :0], (3, 4))
    torch.testing.assert_close(dropped, without, rtol=1e-5, atol=1e-6)


def test_batches_hold_every_scene_once_a_pass() -> None:
    """Up to the rest that fills no batch; and no batch mixes shapes."""
    rng = random.Random(0)
    sample = scenes.Sample
    samples = {
        grid: [sample(torch.zeros(1), torch.zeros(rng.randrange(1, 30), 1, 1), torch.zeros(1, 2)) for _ in range(count)]
        for grid, count in (((4, 4), 11), ((2, 8), 6))
    }
    rows = scenes.batches(samples, 3, rng, "a pass")
    for grid, count in (((4, 4), 11), ((2, 8), 6)):
        seen = [i for g, index in rows if g == grid for i in index]
        assert len(seen) == len(set(seen)) == count // 3 * 3


def samples_of(lengths: list[int]) -> scenes.Samples:
    """One shape, captions of so many tokens."""
    return {(4, 4): [scenes.Sample(torch.zeros(1), torch.zeros(n, 1, 1), torch.zeros(1, 2)) for n in lengths]}


def test_what_fills_no_batch_is_left_out_at_random() -> None:
    """Of eleven scenes two a pass; the longest caption by far is trained on like any other."""
    samples = samples_of([*range(1, 11), 500])
    passes = [scenes.batches(samples, 3, random.Random(5), str(number)) for number in range(60)]
    seen = [{i for _, index in rows for i in index} for rows in passes]
    counts = [sum(i in one for one in seen) for i in range(11)]
    assert sum(counts) == 60 * 9 and min(counts) > 35  # of 49 expected, four deviations below
    assert passes[7] == scenes.batches(samples, 3, random.Random(5), "7")
    assert all(500 in [len(samples[4, 4][i].text_LTF) for i in index] for _, index in passes[0] if 10 in index)


def test_where_all_batches_are_full_the_order_is_what_it_was() -> None:
    """Of runs begun before anything was left out at random: written down from then."""
    order = scenes.batches(samples_of([9, 3, 30, 4, 22, 7]), 2, random.Random(5), "a pass")
    assert order == [((4, 4), [4, 2]), ((4, 4), [0, 5]), ((4, 4), [1, 3])]


@pytest.mark.parametrize(("encode_batch", "per_round", "count"), [(300, 600, 128), (48, 600, 128), (8, 20, 20)])
def test_as_many_scenes_are_held_as_said(
    tmp_path: Path,
    frozen: Frozen,
    monkeypatch: pytest.MonkeyPatch,
    encode_batch: int,
    per_round: int,
    count: int,
) -> None:
    """Also where more are encoded at once than are held; and they are the first of those that are drawn."""
    monkeypatch.setattr(scenes, "render", lambda _scene, width, height: np.zeros((height, width, 3), np.uint8))
    plan = changed(config(tmp_path, frozen), {"data.encode_batch": encode_batch, "data.per_round": per_round})
    held = scenes.SceneSource(drawing(plan), frozen).held(plan.stages[0])
    assert sum(len(loaded.x0_BNC) for _, loaded in held) == count


def test_training_never_sees_a_held_out_scene(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged on what is really drawn for each of the three networks; 1 in 40 scenes of several things is held out."""
    drawn: list[Scene] = []

    def blank(scene: Scene, width: int, height: int) -> np.ndarray:
        drawn.append(scene)
        return np.zeros((height, width, 3), np.uint8)

    def told(*args: Any, **options: Any) -> Scene:
        drawn.append(sample_scene(*args, **options))
        return drawn[-1]

    def all_may_be_seen() -> bool:
        several = [scene for scene in drawn if len(scene.things) > 1]
        fine = len(several) > 200 and not any(is_held_out(scene) for scene in drawn)
        drawn.clear()
        return fine

    monkeypatch.setattr(vae, "render", blank)
    monkeypatch.setattr(scenes, "render", blank)
    monkeypatch.setattr(dialogues, "sample_scene", told)
    for step in range(10):
        vae.draw_crops(step, seed=0, batch=32, crop=16, per_scene=1)
    assert all_may_be_seen()
    template, tokenizer = frozen.encoder.params.template, frozen.tokenizer.to_str()
    scenes.draw(
        0, seed=0, name="test", base=256, square_share=1.0, count=250, tokenizer_json=tokenizer, template=template,
        mix=SceneMix(layouts=Layouts(pair=1, inside=1, trio=1, count=1, count_and_one=1)),
    )  # fmt: skip
    assert all_may_be_seen()
    kinds = tuple((kind, 1.0) for kind in dialogues.MAKERS)
    for step in range(40):
        language.make_batch(step, tokenizer_json=tokenizer, template=template, config_seed=0, kinds=kinds, tokens=6000)
    assert all_may_be_seen()


def test_a_stage_chooses_its_scenes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frozen: Frozen) -> None:
    """Counted on the scenes drawn: `layouts` are weights, none leave the scenes' own shares."""
    drawn: list[str] = []

    def blank(scene: Scene, width: int, height: int) -> np.ndarray:
        drawn.append(scene.layout)
        return np.zeros((height, width, 3), np.uint8)

    # What they look like does not matter here, and drawing takes longer than all the rest.
    monkeypatch.setattr(scenes, "render", blank)
    plan = changed(config(tmp_path / "run", frozen, steps=1), {"data.per_round": 160})
    weights = {"only": (2.0, *(0.0,) * 6), "never": (0.0, *(1.0,) * 6), "often": (9.0, *(1.0,) * 6)}
    only, never, often = (Layouts(**dict(zip(LAYOUTS, one, strict=True))) for one in weights.values())
    for layouts, low, high in ((only, 1.0, 1.0), (never, 0.0, 0.0), (often, 0.45, 0.75), (None, 0.12, 0.4)):
        drawn.clear()
        stage, mix = dataclasses.replace(plan.stages[0], base=256), SceneMix(layouts=layouts, captions=(0.0, 0.0, 1.0))
        scenes.encode_round(drawing(plan), stage, mix, f"test {low}", frozen)
        assert low <= drawn.count("single") / len(drawn) <= high, layouts  # four deviations wide


def test_every_layout_has_a_weight() -> None:
    assert tuple(field.name for field in dataclasses.fields(Layouts)) == LAYOUTS  # they stand in two files
    with pytest.raises(UsageError, match="layouts are all 0"):
        Layouts()
    with pytest.raises(UsageError, match="sign=-1"):
        Layouts(single=1.0, sign=-1.0)


def test_a_folder_in_use_is_refused(tmp_path: Path, frozen: Frozen) -> None:
    plan = config(tmp_path / "run", frozen, steps=1)
    with alone(plan.run_dir), pytest.raises(UsageError, match="another process is training"):
        pretrain.run(plan, frozen)
    assert [path.name for path in plan.run_dir.iterdir()] == [".lock"]  # nothing was begun
    pretrain.run(plan, frozen)
    assert len(checkpoints.folders(plan.run_dir)) == 1


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.5, 60, 100), (1.0, 160, 160)])
def test_brief_captions_state_colours_and_places_as_often_as_asked(
    tmp_path: Path, frozen: Frozen, monkeypatch: pytest.MonkeyPatch, share: float, low: int, high: int
) -> None:
    """Of 160; a plain background, for a caption may name the colours of skies and hills too. Two things whose places
    are not said are joined by "and"."""
    fish = Thing(kind="fish", colour="purple", size="medium", x=0.5, y=0.3, r=0.2)
    ball = Thing(kind="ball", colour="green", size="medium", x=0.5, y=0.7, r=0.2)
    pair = Scene(
        width=1.0, height=1.0, style="flat", background=Background(plain="cream"), things=(fish, ball),
        groups=((0, 1), (1, 1)), layout="pair", relation="above",
    )  # fmt: skip
    captions: list[str] = []

    def recorded(*arguments: Any) -> str:
        captions.append(caption_of(*arguments))
        return captions[-1]

    monkeypatch.setattr(scenes, "sample_on_grid", lambda *_arguments, **_options: pair)
    monkeypatch.setattr(scenes, "caption_of", recorded)
    monkeypatch.setattr(scenes, "render", lambda _scene, width, height: np.zeros((height, width, 3), np.uint8))
    plan = changed(config(tmp_path / "run", frozen, steps=1), {"data.per_round": 160})
    usual = SceneMix()
    assert Stating(usual.coloured_share, usual.placed_share, usual.orderly) == Stating()  # they stand in two files
    asked = SceneMix(captions=(0.0, 0.0, 1.0), coloured_share=share, placed_share=1 - share)
    scenes.encode_round(drawing(plan), plan.stages[0], asked, "test", frozen)
    assert low <= sum("purple" in caption for caption in captions) <= high  # three deviations wide
    assert low <= sum(" and " in caption for caption in captions) <= high


def test_orderly_captions_leave_only_the_usual_unsaid() -> None:
    """Read back from the words: two things joined by "and" stand side by side in that order, and several of a kind
    whose arrangement is not said stand in rows."""
    rng, often = random.Random(7), Stating(colour=0.0, place=0.0, orderly=True)
    unsaid = {"left of": 0, "right of": 0, "row": 0, "two rows": 0}
    for _ in range(400):
        scene = sample_scene(rng, layouts=("pair", "count"), weights=(1.0, 1.0))
        text, stated = brief_stating(scene, rng, often)
        first, last = scene.things[0], scene.things[-1]
        if scene.layout == "count":
            told = {"scattered": "scattered", "column": "in a column"}.get(scene.arrangement or "")
            assert told in text if told else " row" not in text
        elif "place" not in stated:
            left, right = (kind_name(thing.kind) for thing in sorted((first, last), key=lambda thing: thing.x))
            assert re.search(rf"\b(small |large )?{left} and an? (small |large )?{right}\b", text)
        else:
            assert scene.relation in ("above", "below", "on top of")
        if "place" not in stated:
            unsaid[scene.relation or scene.arrangement or ""] += 1  # KeyError: an unusual one was left open
    assert min(unsaid.values()) > 10


@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_captions_have_the_asked_length(shares: tuple[float, float, float]) -> None:
    rng = random.Random(3)
    words = [len(caption_of(sample_scene(rng), rng, shares).split()) for _ in range(300)]
    if shares[0]:
        assert min(words) >= 40 and max(words) <= 110
    elif shares[2]:
        assert max(words) < 40
