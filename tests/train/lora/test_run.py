"""Fine-tuning on networks of a few thousand parameters, on the CPU.

Trustworthy because nothing is mocked: a whole tiny model on the disk, drawn pictures, real checkpoints; because what a
LoRA file does is judged by the code that `lens gen` loads it with, which has its own tests against files written by
hand; and because the claims are exact: a killed and resumed run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from backend.checkpoints.resolve import resolve_model
from backend.errors import CheckpointError, NumericsError, UsageError
from backend.loading import load_transformer
from backend.memory.linears import pack_weight
from backend.model.transformer import JointAttention
from backend.presets import get
from backend.types import Quant
from tests.train.changed import changed
from tests.train.drawn_folder import draw_folder
from tests.train.fine_tuning import CPU, plan, rows, velocity
from tests.train.overflow import overflows_beyond
from train.config import At, Noise, locate
from train.lora import plan as lora_plan
from train.lora import run
from train.lora.adapters import FrozenLinear, adapters, with_adapters
from train.lora.config import choose, target_shapes
from train.lora.pictures import read_folder
from train.lora.source import FolderSource, Kept
from train.run import checkpoints
from train.run.batch import Batch, noised

# ---------------------------------------------------------------------------------------------------- what it learns


def test_the_validation_loss_falls_and_does_not_depend_on_the_batch(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path
) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache, steps=40, saving__validate_every=20, noise__dropout=0.0)
    run.run(config)
    judged = {row["step"]: row["validation"] for row in rows(config.run_dir) if "validation" in row}
    assert list(judged) == [0, 20, 40] and judged[40] < 0.9 * judged[0]
    other = changed(config, {"saving.validate_every": 1}, run_dir=tmp_path / "other", batch=1, steps=1)
    run.run(other)
    assert any(row["step"] == 1 and row["learning_rate"] > 0 for row in rows(other.run_dir))  # shorter than log_every
    again = next(row["validation"] for row in rows(other.run_dir) if row["step"] == 0)
    assert again == pytest.approx(judged[0], rel=1e-5)  # of the untouched model, whatever else is asked


def test_fresh_adapters_change_nothing(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    files = resolve_model(str(tiny))
    config = plan(tmp_path / "run", pictures, tiny, cache)
    untouched = load_transformer(files, torch.float32, CPU)
    for module in untouched.modules():
        if isinstance(module, JointAttention):
            module.explicit = True  # as in training on a CPU; the other kernel rounds otherwise
    assert torch.equal(velocity(with_adapters(config, files, CPU)), velocity(untouched))


@pytest.mark.parametrize("quant", [Quant.nf4, Quant.int8, Quant.gguf])
def test_a_packed_base_gives_the_gradients_of_its_decoded_weights(quant: Quant) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(96, 64, generator=generator), torch.randn(2, 7, 64, generator=generator))
    packed, pull = pack_weight(weight, quant), torch.randn(2, 7, 96, generator=generator)
    kept: list[tuple[int, ...]] = []
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        (FrozenLinear(packed)(ours) * pull).sum().backward()
    assert not any(shape in ((96, 64), (64, 96)) for shape in kept)  # no decoded weight waits for the backward pass
    (F.linear(theirs, packed.decoded(torch.float32)) * pull).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_qlora_trains(tmp_path: Path, pictures: Path, tiny: Path, cache: Path, checkpointing: str) -> None:
    fields = {"quant": Quant.nf4, "steps": 20, "machine__compute": "bfloat16", "machine__checkpointing": checkpointing}
    config = plan(tmp_path / "run", pictures, tiny, cache, saving__validate_every=30, **fields)
    run.run(config)
    judged = [row["validation"] for row in rows(config.run_dir) if "validation" in row]
    assert judged[-1] < 0.95 * judged[0]
    network = with_adapters(config, resolve_model(str(tiny)), CPU)
    assert all(isinstance(adapter.linear, FrozenLinear) for _, adapter in adapters(network))


def test_a_loss_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad: list[str] = []

    def damaged(noise: Noise, seed: int, at: At, *rest: Any) -> Batch:
        batch = noised(noise, seed, at, *rest)
        if at.step == 3:
            batch.x0_BNC[-1, 0, 0] = float("nan")
            bad.append(batch.names[-1])
        return batch

    config = plan(tmp_path / "run", pictures, tiny, cache, held_out=0.0)
    with monkeypatch.context() as patched, pytest.raises(NumericsError, match=r"step 3: ") as caught:
        patched.setattr("train.run.batch.noised", damaged)
        run.run(config)
    assert f"pictures whose loss is not finite: {bad[0]}; stopped" in str(caught.value) and len(bad) == 1
    found = checkpoints.latest(config.run_dir, run.Ranks(CPU))
    assert found is not None and found.step == 2 and "step-00000002, is untouched" in str(caught.value)
    assert run.run(config).finished  # with the picture mended
    assert rows(config.run_dir)[-1]["loss"] > 0


def test_a_run_that_learns_too_fast_goes_on_at_a_lower_rate(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that had the lower rate from its last checkpoint on, also where it keeps one only."""
    overflows_beyond(0.8, monkeypatch)  # the adapters' matrices begin well below
    slow = plan(tmp_path / "slow", pictures, tiny, cache, held_out=0.0, saving__keep=1, optim__warmup=0)
    fast = replace(slow, run_dir=tmp_path / "fast", learning_rate=1.0)
    run.run(replace(slow, run_dir=fast.run_dir, steps=2, decay=0.0))
    with pytest.raises(NumericsError, match=r"step 3: .*, step-00000002, is untouched") as caught:
        run.run(fast)
    assert "--set learning_rate=" in (caught.value.hint or "")
    assert run.run(replace(fast, learning_rate=slow.learning_rate)).finished and run.run(slow).finished
    assert rows(fast.run_dir) == rows(slow.run_dir)


# --------------------------------------------------------------------------------------------------------------- data


def test_an_epoch_has_every_picture_once(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache, steps=50, batch=2, accumulate=2)
    files = resolve_model(str(tiny))
    folder = read_folder(config, (64,))
    source = FolderSource(config, folder, Kept(config, files, run.Ranks(CPU), lambda _: None))
    stages = (config.stage_of(files.preset),)
    assert len(folder.held) == 1 and len(folder.buckets()) == 3
    order = [group for step in range(50) for group in source.groups(locate(stages, step))]
    an_epoch = sum(-(-len(found) // 2) for found in folder.buckets().values())
    epochs = [order[i : i + an_epoch] for i in range(0, len(order) - an_epoch, an_epoch)]
    for epoch in epochs:
        seen = Counter(picture for _, refs in epoch for picture in refs)
        assert seen == Counter(folder.training)
        assert all(len(refs) <= 2 and len({(p.shape) for p in refs}) == 1 for _, refs in epoch)  # pyright: ignore[reportAttributeAccessIssue]
    assert epochs[0] != epochs[1]
    # A function of the step alone: a resumed run asks in another order.
    fresh = FolderSource(config, folder, source.kept)
    assert fresh.groups(locate(stages, 31)) == order[62:64]


def test_only_what_changed_is_encoded_again(tmp_path: Path, tiny: Path) -> None:
    pictures = draw_folder(tmp_path / "pictures", 4)
    kept = tmp_path / "cache"
    config = plan(tmp_path / "run", pictures, tiny, kept, steps=1)
    counts: list[tuple[int, int, bool]] = []

    def count() -> None:
        told: list[str] = []
        run.run(replace(config, run_dir=tmp_path / f"run{len(counts)}"), told.append)
        files = [len(list((kept / name).iterdir())) for name in ("latents", "texts")]
        counts.append((files[0], files[1], any("encoding" in text for text in told)))

    count()
    count()
    (pictures / "zorb00.txt").write_text("another caption")
    count()
    (pictures / "zorb01.png").write_bytes((pictures / "zorb02.png").read_bytes())
    count()
    draw_folder(tmp_path / "more", 5)
    (tmp_path / "more" / "zorb04.png").rename(pictures / "new.png")
    (pictures / "new.txt").write_text("another caption")
    count()
    assert counts == [(4, 4, True), (4, 4, False), (4, 5, False), (4, 5, False), (5, 5, True)]


def test_a_caption_that_is_cut_is_named(tmp_path: Path, tiny: Path) -> None:
    pictures = draw_folder(tmp_path / "pictures", 2)
    (pictures / "zorb01.txt").write_text("ladder " * 600)
    told: list[str] = []
    run.run(plan(tmp_path / "run", pictures, tiny, tmp_path / "cache", steps=1), told.append)
    (said,) = (text for text in told if "cut: " in text)  # of one caption of two
    assert "tokens that are read, cut: ladder ladder" in said and len(said) < 120


# ------------------------------------------------------------------------------------------------------------- config


def test_targets_and_ranks(tmp_path: Path) -> None:
    config = choose(tmp_path, "nano", None, ["targets=img_qkv,io,transformer_blocks.3.txt_mlp.w2"])
    params = resolve_model("nano").preset.params.dit
    found = target_shapes(config, params)
    assert len(found) == 10 + 3 + 1 and found["transformer_blocks.9.attn.img_qkv"] == (768, 256)
    assert found["transformer_blocks.3.txt_mlp.w2"] == (256, 672) and "proj_out" in found
    with pytest.raises(UsageError, match="rank=200: img_in is 256 x 128"):
        target_shapes(replace(config, rank=200), params)
    with pytest.raises(UsageError, match="targets=to_q: no linear"):
        target_shapes(replace(config, targets=("to_q",)), params)


def test_recipes_and_wrong_values(tmp_path: Path) -> None:
    assert (
        choose(tmp_path, "nano", None, []).batch == 4
        and choose(tmp_path, "lens", None, []).machine.checkpointing == "full"
    )
    small = choose(tmp_path, "lens", None, ["rank=8"], recipe="lora-8gb")
    assert (small.quant, small.bases, small.rank) == (Quant.nf4, (512,), 8)
    assert choose(tmp_path, "lens-base", None, [], full=True).tune == "full"
    assert choose(tmp_path, "lens", None, []).bases_of(get("lens")) == (512, 768, 1024)
    for wrong in (
        "rank=0", "noise.dropout=1.1", "quant=fp8", "quant=q9", "bases=abc", "learning_rate=0", "learning_rate=inf",
        "optim.warmup=-1", "previews=-1", "noise.time_std=-1", "optim.betas=0.9,1", "optim.weight_decay=-1",
        "optim.ema_decay=1", "machine.device=toaster", "alpha=inf",
        "bases=", "bases=0",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            choose(tmp_path, "lens", None, [wrong])
    with pytest.raises(UsageError, match="start_from is a LoRA"):
        choose(tmp_path, "lens", None, ["start_from=x.safetensors"], full=True)
    for holds in (tmp_path, tmp_path.parent):
        with pytest.raises(UsageError, match="holds the pictures"):
            choose(tmp_path, "lens", holds, [])
    with pytest.raises(UsageError, match="freezes"):
        choose(tmp_path, "lens", None, ["quant=nf4"], full=True)
    with pytest.raises(UsageError, match="unknown recipe 'lokr'"):
        choose(tmp_path, "lens", None, [], recipe="lokr")


def test_another_base_is_refused(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache, steps=2)
    run.run(config)
    noted = (config.run_dir / "config.json").read_bytes()
    monkeypatch.setattr(run, "transformer_sha256", lambda _files: "0" * 64)
    with pytest.raises(CheckpointError, match="another model's weights"):
        run.run(replace(config, learning_rate=0.5))
    assert (config.run_dir / "config.json").read_bytes() == noted  # what was refused has not become the run's


def test_a_distilled_model_is_said_to_be_one(tmp_path: Path) -> None:
    config = choose(tmp_path, "lens-turbo", None, [])
    (said,) = lora_plan.notes(config, get("lens-turbo"), None, "cuda")
    assert said.startswith("lens-turbo is distilled") and not lora_plan.notes(config, get("lens-base"), None, "cuda")
