"""What fine-tuning leaves, judged by what `lens gen` reads it with; averages; going on from a LoRA file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.errors import UsageError
from backend.loading import load_transformer
from backend.lora.keys import read_lora
from backend.lora.names import parse_lora
from backend.model.tensors import transformer_shapes
from backend.model.transformer import LensTransformer2DModel
from tests.backend import lora_files
from tests.backend.tiny_weights import write_diffusers, write_runnable
from tests.train.changed import changed
from tests.train.fine_tuning import CPU, plan, rows, velocity
from train.lora import run
from train.lora.adapters import adapters, begin_with, read_start, with_adapters
from train.lora.files import beside_its_parts
from train.run import checkpoints, step
from train.run.export import export
from train.run.learner import Learner


def test_what_gen_loads_has_the_trainers_velocities(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Learner[LensTransformer2DModel]] = []
    usual = run.make_learner

    def kept(*args: Any) -> Learner[LensTransformer2DModel]:
        trained.append(usual(*args))
        return trained[-1]

    monkeypatch.setattr(run, "make_learner", kept)
    every = ("attn", "mlp", "mod", "io")
    config = plan(
        tmp_path / "run", pictures, tiny, cache, targets=every, trigger="a sks", saving__preview_every=3, previews=1
    )
    result = run.run(config)
    files = resolve_model(str(tiny))
    expected = velocity(trained[0].model.eval())
    untouched = velocity(load_transformer(files, torch.float32, CPU))
    change = float((expected - untouched).abs().max())
    assert change > 1e-2 and len(result.files) == 3
    for path in result.files:  # ComfyUI's keys, diffusers', kohya's
        loaded = velocity(load_transformer(files, torch.float32, CPU, [parse_lora(str(path))]))
        assert float((loaded - expected).abs().max()) < 1e-4 * change, path  # float32 rounding of W + delta
        found = read_lora(path, transformer_shapes(files.preset.params.dit))
        assert not found.unmatched and len(found.updates) == 2 * 12 + 3
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        stated = json.loads(header["lens_training"])
        assert (header["base_model"], header["step"], header["modelspec.trigger_phrase"]) == ("model", "6", "a sks")
        assert (stated["rank"], stated["alpha"], stated["steps"]) == (4, 8.0, 6) and len(stated["base_sha256"]) == 64
    # A LoRA beside each sheet, and `--lora RUN` finds the one at the top.
    assert [p.name for p in sorted((config.run_dir / "steps").iterdir())] == [
        "lora-00000003.safetensors", "lora-00000006.safetensors"
    ]  # fmt: skip
    last = load_file(config.run_dir / "steps" / "lora-00000006.safetensors")
    top = load_file(config.run_dir / "lora.safetensors")
    assert all(torch.equal(last[name], top[name]) for name in top)
    assert parse_lora(str(config.run_dir)).path == str(config.run_dir / "lora.safetensors")
    assert len(list((config.run_dir / "previews").iterdir())) == 3  # before the first step, after 3 and 6
    with pytest.raises(UsageError, match=r"trained adapters, not a transformer"):  # `lens train export RUN`
        export(config.run_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["model", "ema"])
def test_full_fine_tuning_ends_as_a_model(tmp_path: Path, pictures: Path, tiny: Path, cache: Path, part: str) -> None:
    fields = {"optim__ema_decay": 0.9 if part == "ema" else None, "tune": "full", "learning_rate": 1e-3, "steps": 4}
    config = plan(tmp_path / "run", pictures, tiny, cache, **fields)
    single, folder = run.run(config).files
    found = checkpoints.latest(config.run_dir, run.Ranks(CPU))
    assert found is not None
    state = checkpoints.read_whole(found, part)
    before = load_transformer(resolve_model(str(tiny)), torch.float32, CPU).state_dict()
    assert state.keys() == before.keys() and not torch.equal(state["img_in.weight"], before["img_in.weight"])
    written = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name], state[name].bfloat16()) for name in state) and single.exists()
    more = run.run(replace(config, steps=6))  # goes on where it stood
    assert more.finished and [row["step"] for row in rows(config.run_dir) if "grad_norm" in row][-2:] == [5, 6]


def test_the_whole_model_draws_with_the_parts_it_was_trained_with(tmp_path: Path, pictures: Path, cache: Path) -> None:
    """Not with those of a model of that size that is in the registry, nor with its defaults."""
    model = write_runnable(tmp_path / "lens-base")
    (model / "lens.json").write_text('{"variant": "lens-base"}')
    config = plan(tmp_path / "run", pictures, model, cache, tune="full", steps=1, held_out=0.0)
    told: list[str] = []
    before, found = resolve_model(str(model)), resolve_model(str(run.run(config, told.append).files[0]))
    assert frozen_parts(found) == frozen_parts(before)
    assert (found.preset.name, before.preset.name) == ("lens-base", "lens-base")
    assert found.transformer != before.transformer and not any("needs the text encoder" in text for text in told)
    assert run.run(config).files  # again, over the links


def test_the_parts_of_the_published_layout(tmp_path: Path) -> None:
    model, out = write_diffusers(tmp_path / "model"), tmp_path / "export"
    shutil.copytree(model / "transformer", out / "transformer")
    files = resolve_model(str(model))
    target = beside_its_parts(files, out / "transformer", out / "run.safetensors")
    assert target == out / "transformer" and frozen_parts(resolve_model(str(target))) == frozen_parts(files)


def frozen_parts(files: ModelFiles) -> list[Path]:
    return [path.resolve() for path in (*files.text_encoder, *files.tokenizer, *files.vae)]


def test_the_average_is_judged_and_written(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the recurrence of the weights as each step leaves them."""
    seen: list[Tensor] = []
    module = "transformer_blocks.1.attn.to_out.0"

    def take_step(learner: Learner[LensTransformer2DModel], *args: Any, **options: Any) -> step.Taken:
        if not seen:
            seen.append(dict(adapters(learner.model))[module].down_RI.detach().clone())
        taken = step.take_step(learner, *args, **options)
        seen.append(dict(adapters(learner.model))[module].down_RI.detach().clone())
        return taken

    monkeypatch.setattr(run, "take_step", take_step)
    config = plan(tmp_path / "run", pictures, tiny, cache, optim__ema_decay=0.25)
    result = run.run(config)
    wanted = seen[0]
    for n, weight in enumerate(seen[1:], 1):
        decay = min(0.25, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * weight
    written = load_file(result.files[0])[f"diffusion_model.{module}.lora_A.weight"]
    assert torch.allclose(written, wanted, rtol=1e-5, atol=1e-7) and not torch.allclose(written, seen[-1], rtol=1e-3)
    plain = changed(config, {"optim.ema_decay": None}, run_dir=tmp_path / "plain")
    run.run(plain)
    both = [{row["step"]: row for row in rows(one.run_dir) if "validation" in row} for one in (config, plain)]
    assert both[0][0]["validation"] == both[1][0]["validation"]  # nothing is learned yet
    assert both[0][6]["loss"] == both[1][6]["loss"] and both[0][6]["validation"] != both[1][6]["validation"]


def test_going_on_from_a_lora(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    """Of each key family, at another rank and alpha: the network begins as what `lens gen --lora` draws with."""
    before = run.run(plan(tmp_path / "before", pictures, tiny, cache)).files[0]
    others = [case.write(tmp_path / f"{name}.safetensors") for name, case in lora_files.LOW_RANK.items()]
    files = resolve_model(str(tiny))
    config = plan(tmp_path / "run", pictures, tiny, cache, rank=6, alpha=3.0, targets=("attn", "mlp", "io"))
    untouched = velocity(load_transformer(files, torch.float32, CPU))
    for path in (before, *others):
        expected = velocity(load_transformer(files, torch.float32, CPU, [parse_lora(str(path))]))
        network = with_adapters(config, files, CPU)
        begin_with(network, read_start(str(path), config, files.preset.params.dit))
        change = float((expected - untouched).abs().max())
        assert change > 1e-2 and float((velocity(network) - expected).abs().max()) < 1e-4 * change, path
    told: list[str] = []
    going = replace(config, start_from=str(tmp_path / "before"), steps=2)
    result = run.run(going, told.append)
    assert any("beginning with" in text and "lora.safetensors: 20 linears" in text for text in told)
    with safe_open(result.files[0], framework="pt") as file:
        assert json.loads(file.metadata()["lens_training"])["start_from"] == "before"
    judged = [
        [row["validation"] for row in rows(one) if "validation" in row] for one in (tmp_path / "before", going.run_dir)
    ]
    assert judged[1][0] == pytest.approx(judged[0][-1], rel=1e-4)
    before.unlink()
    assert run.run(going).finished  # resumed: what it began with is needed no more


def test_a_lora_that_the_adapters_cannot_hold(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    params = resolve_model(str(tiny)).preset.params.dit
    config = plan(tmp_path / "run", pictures, tiny, cache)
    low_rank, lokr, dora, full, biased = (
        str({**lora_files.LOW_RANK, **lora_files.WHOLE}[name].write(tmp_path / f"{name}.safetensors"))
        for name in ("kohya", "LoKr with a header", "DoRA of PEFT", "full deltas", "PEFT with a bias")
    )
    assert len(read_start(low_rank, config, params).updates) == 2
    with pytest.raises(UsageError, match="its rank is 3, rank=2"):
        read_start(low_rank, replace(config, rank=2), params)
    with pytest.raises(UsageError, match="which targets=mlp leaves out"):
        read_start(low_rank, replace(config, targets=("mlp",)), params)
    for path, kind in ((lokr, "LoKr"), (dora, "DoRA"), (full, "full delta"), (biased, "full delta")):
        with pytest.raises(UsageError, match=f"the {kind} update of .* cannot be trained on"):
            read_start(path, config, params)
    with pytest.raises(UsageError, match="no LoRA is called 'gone'"):
        run.run(replace(config, start_from="gone"))
    assert not config.run_dir.exists()
