"""Fine-tuning on networks of a few thousand parameters, on the CPU.

Trustworthy because nothing is mocked: a whole tiny model on the disk, drawn pictures, real checkpoints; because what a
LoRA file does is judged by the code that `lens gen` loads it with, which has its own tests against files written by
hand; and because the claims are exact: a killed and resumed run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from backend.errors import CheckpointError, LensError, NumericsError, OutOfMemoryError, UsageError
from backend.loras import parse_lora
from backend.model.checkpoint import load_transformer
from backend.model.lora_keys import read_lora
from backend.model.tensor_tables import transformer_shapes
from backend.model.transformer import JointAttention
from backend.presets import get
from backend.quantize import quantised
from backend.types import Quant
from backend.weights import ModelFiles, resolve_model
from tests.backend import lora_files
from tests.backend.tiny_weights import write_diffusers, write_runnable
from tests.train.drawn_folder import draw_folder
from train import lora, lora_plan, runs, sharded
from train.adapters import FrozenLinear, adapters, begin_with, read_start, with_adapters
from train.cached import Cache, FolderSource
from train.config import At, PretrainConfig, Stage, locate
from train.data.folder import read_folder
from train.export import export
from train.lora_config import LoraConfig, as_pretraining, choose, target_shapes
from train.lora_files import beside_its_parts
from train.sources import Batch, noised
from train.trained import Trained

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model of random weights, as Lens-Nano is stored."""
    return write_runnable(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the runs here, as a person's may share one."""
    return tmp_path_factory.mktemp("cache")


def plan(run_dir: Path, pictures: Path, model: Path, cache: Path, **fields: object) -> LoraConfig:
    usual: dict[str, object] = {
        "rank": 4, "alpha": 8.0, "bases": (64,), "steps": 6, "batch": 3, "learning_rate": 1e-2, "warmup": 2,
        "device": "cpu", "previews": 0, "validate_every": 3, "save_every": 2, "log_every": 1, "compute": "float32",
    }  # fmt: skip
    return LoraConfig(run_dir=run_dir, pictures=pictures, model=str(model), cache=cache, **(usual | fields))  # pyright: ignore[reportArgumentType]


def rows(run_dir: Path) -> list[dict[str, float]]:
    """The log, without what a clock tells."""
    timed = ("seconds", "pictures_per_s", "tflops", "eta_s")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def velocity(network: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x, text = torch.randn(2, 16, 128, generator=generator), torch.randn(2, 5, 2, 64, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([0.3, 0.8]), text, (4, 4))


# ------------------------------------------------------------------------------------------------------------- resume


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    """SIGKILL at whatever moment it comes, in a process of its own."""
    whole = plan(tmp_path / "whole", pictures, tiny, cache, steps=30)
    assert lora.run(whole).finished
    cut = replace(whole, run_dir=tmp_path / "cut")
    code = (
        "from pathlib import Path; from tests.train.test_lora import plan; from train import lora\n"
        f"lora.run(plan(Path({str(cut.run_dir)!r}), Path({str(pictures)!r}), Path({str(tiny)!r}), "
        f"Path({str(cache)!r}), steps=30))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    log, until = cut.run_dir / "metrics.jsonl", time.monotonic() + 200
    while (not log.exists() or log.read_text().count("\n") < 9) and time.monotonic() < until:
        assert child.poll() is None, "it must still run"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    reached = runs.find(cut.run_dir)[0].step
    assert 0 < reached < 30 and not (cut.run_dir / "lora.safetensors").exists()

    told: list[str] = []
    assert lora.run(cut, told.append).finished
    assert any("going on from step" in text for text in told)
    assert rows(cut.run_dir) == rows(whole.run_dir) and rows(cut.run_dir)[-1]["step"] == 30
    ours, theirs = (load_file(run.run_dir / "lora.safetensors") for run in (cut, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    status = runs.find(cut.run_dir)[0]
    assert status.steps == 30 and status.checkpoints == (28, 30)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_asked_to_stop_it_saves_and_goes_on(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float | None
) -> None:
    whole = plan(tmp_path / "whole", pictures, tiny, cache, ema_decay=ema_decay)
    lora.run(whole)
    usual, asked = Trained.step, []

    def step(self: Trained, *args: object, **options: object) -> object:
        taken = usual(self, *args, **options)  # type: ignore[arg-type]
        if not asked:
            asked.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return taken

    monkeypatch.setattr(Trained, "step", step)
    cut = replace(whole, run_dir=tmp_path / "cut")
    result = lora.run(cut)
    assert (result.step, result.finished) == (1, False) and result.files[0].exists()
    assert lora.run(cut).finished and rows(cut.run_dir) == rows(whole.run_dir)
    ours, theirs = (load_file(run.run_dir / "lora.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert lora.run(cut).step == 6  # finished already: nothing is trained, the files are written again


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_stopped_before_the_first_step_it_leaves_nothing(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    def asked(*_: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"validation": 1.0}

    config = plan(tmp_path / "run", pictures, tiny, cache, tune=tune, steps=2, learning_rate=1e-3)
    with monkeypatch.context() as patched:
        patched.setattr(lora, "validate", asked)
        result = lora.run(config)
    assert (result.step, result.finished, result.files) == (0, False, ()) and not sharded.folders(config.run_dir)
    assert lora.run(config).finished


def test_killed_before_the_first_checkpoint_the_log_begins_anew(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan(tmp_path / "whole", pictures, tiny, cache, steps=3)
    lora.run(whole)
    usual, taken = Trained.step, []

    def step(self: Trained, *args: object, **options: object) -> object:
        taken.append(usual(self, *args, **options))  # type: ignore[arg-type]
        if len(taken) == 2:
            raise SystemExit  # as good as a kill: nothing is saved
        return taken[-1]

    cut = replace(whole, run_dir=tmp_path / "cut")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trained, "step", step)
        lora.run(cut)
    assert [row["step"] for row in rows(cut.run_dir)] == [0, 1] and not sharded.folders(cut.run_dir)
    lora.run(cut)
    assert rows(cut.run_dir) == rows(whole.run_dir)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"alpha": 4.0}, "another alpha"),
        ({"trigger": "sks"}, "other pictures or captions"),
        ({"rank": 2}, "another rank \\(4\\)"),
        ({"targets": ("attn",)}, "other targets"),
        ({"targets": ("attn", "mlp", "io")}, "other targets"),
        ({"tune": "full"}, "tune=lora"),
        ({"steps": 1}, "is at step 2 already"),
    ],
)
def test_a_run_goes_on_as_it_began(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, fields: dict[str, object], says: str
) -> None:
    begun = plan(tmp_path / "run", pictures, tiny, cache, steps=2, held_out=0.0)
    lora.run(begun)
    with pytest.raises(LensError, match=says) as caught:
        lora.run(replace(begun, **fields))  # pyright: ignore[reportArgumentType]
    assert caught.value.hint or "already" in says


def test_a_folder_with_another_run_is_refused(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache)
    config.run_dir.mkdir()
    (config.run_dir / "config.json").write_text('{"stages": [{"steps": 5}]}')
    with pytest.raises(UsageError, match="another kind of run"):
        lora.run(config)


def test_torchrun_is_refused(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = plan(tmp_path / "run", pictures, tiny, cache)
    with pytest.raises(UsageError, match="one process, and torchrun started 2"):
        lora.run(config)
    assert not config.run_dir.exists()


def test_running_out_of_memory_while_encoding_says_what_to_do(
    tmp_path: Path, pictures: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("train.cached.encode_images", full)
    with pytest.raises(OutOfMemoryError, match="memory ran out") as caught:
        lora.run(plan(tmp_path / "run", pictures, tiny, tmp_path / "cache"))
    assert "bases=512" in (caught.value.hint or "")


# -------------------------------------------------------------------------------------------------------------- files


def test_what_gen_loads_has_the_trainers_velocities(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Trained] = []
    usual = Trained.__init__

    def kept(self: Trained, *args: object, **options: object) -> None:
        usual(self, *args, **options)  # type: ignore[arg-type]
        trained.append(self)

    monkeypatch.setattr(Trained, "__init__", kept)
    every = ("attn", "mlp", "mod", "io")
    config = plan(tmp_path / "run", pictures, tiny, cache, targets=every, trigger="a sks", preview_every=3, previews=1)
    result = lora.run(config)
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
    fields = {"ema_decay": 0.9 if part == "ema" else None, "tune": "full", "learning_rate": 1e-3, "steps": 4}
    config = plan(tmp_path / "run", pictures, tiny, cache, **fields)
    single, folder = lora.run(config).files
    found = sharded.latest(config.run_dir, lora.Ranks(CPU))
    assert found is not None
    state = sharded.read_whole(found, part)
    before = load_transformer(resolve_model(str(tiny)), torch.float32, CPU).state_dict()
    assert state.keys() == before.keys() and not torch.equal(state["img_in.weight"], before["img_in.weight"])
    written = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name], state[name].bfloat16()) for name in state) and single.exists()
    more = lora.run(replace(config, steps=6))  # goes on where it stood
    assert more.finished and [row["step"] for row in rows(config.run_dir) if "grad_norm" in row][-2:] == [5, 6]


def test_the_whole_model_draws_with_the_parts_it_was_trained_with(tmp_path: Path, pictures: Path, cache: Path) -> None:
    """Not with those of a model of that size that is in the registry, nor with its defaults."""
    model = write_runnable(tmp_path / "lens-base")
    (model / "lens.json").write_text('{"variant": "lens-base"}')
    config = plan(tmp_path / "run", pictures, model, cache, tune="full", steps=1, held_out=0.0)
    told: list[str] = []
    before, found = resolve_model(str(model)), resolve_model(str(lora.run(config, told.append).files[0]))
    assert frozen_parts(found) == frozen_parts(before)
    assert (found.preset.name, before.preset.name) == ("lens-base", "lens-base")
    assert found.transformer != before.transformer and not any("needs the text encoder" in text for text in told)
    assert lora.run(config).files  # again, over the links


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
    usual = Trained.step
    module = "transformer_blocks.1.attn.to_out.0"

    def step(self: Trained, *args: object, **options: object) -> object:
        if not seen:
            seen.append(dict(adapters(self.model))[module].down_RI.detach().clone())
        taken = usual(self, *args, **options)  # type: ignore[arg-type]
        seen.append(dict(adapters(self.model))[module].down_RI.detach().clone())
        return taken

    monkeypatch.setattr(Trained, "step", step)
    config = plan(tmp_path / "run", pictures, tiny, cache, ema_decay=0.25)
    result = lora.run(config)
    wanted = seen[0]
    for n, weight in enumerate(seen[1:], 1):
        decay = min(0.25, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * weight
    written = load_file(result.files[0])[f"diffusion_model.{module}.lora_A.weight"]
    assert torch.allclose(written, wanted, rtol=1e-5, atol=1e-7) and not torch.allclose(written, seen[-1], rtol=1e-3)
    plain = replace(config, run_dir=tmp_path / "plain", ema_decay=None)
    lora.run(plain)
    both = [{row["step"]: row for row in rows(one.run_dir) if "validation" in row} for one in (config, plain)]
    assert both[0][0]["validation"] == both[1][0]["validation"]  # nothing is learned yet
    assert both[0][6]["loss"] == both[1][6]["loss"] and both[0][6]["validation"] != both[1][6]["validation"]


def test_going_on_from_a_lora(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    """Of each key family, at another rank and alpha: the network begins as what `lens gen --lora` draws with."""
    before = lora.run(plan(tmp_path / "before", pictures, tiny, cache)).files[0]
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
    result = lora.run(going, told.append)
    assert any("beginning with" in text and "lora.safetensors: 20 linears" in text for text in told)
    with safe_open(result.files[0], framework="pt") as file:
        assert json.loads(file.metadata()["lens_training"])["start_from"] == "before"
    judged = [
        [row["validation"] for row in rows(one) if "validation" in row] for one in (tmp_path / "before", going.run_dir)
    ]
    assert judged[1][0] == pytest.approx(judged[0][-1], rel=1e-4)
    before.unlink()
    assert lora.run(going).finished  # resumed: what it began with is needed no more


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
        lora.run(replace(config, start_from="gone"))
    assert not config.run_dir.exists()


# ---------------------------------------------------------------------------------------------------- what it learns


def test_the_validation_loss_falls_and_does_not_depend_on_the_batch(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path
) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache, steps=40, validate_every=20, dropout=0.0)
    lora.run(config)
    judged = {row["step"]: row["validation"] for row in rows(config.run_dir) if "validation" in row}
    assert list(judged) == [0, 20, 40] and judged[40] < 0.9 * judged[0]
    other = replace(config, run_dir=tmp_path / "other", batch=1, steps=1, validate_every=1)
    lora.run(other)
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
    packed, pull = quantised(weight, quant), torch.randn(2, 7, 96, generator=generator)
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
    fields = {"quant": Quant.nf4, "steps": 20, "compute": "bfloat16", "checkpointing": checkpointing}
    config = plan(tmp_path / "run", pictures, tiny, cache, validate_every=30, **fields)
    lora.run(config)
    judged = [row["validation"] for row in rows(config.run_dir) if "validation" in row]
    assert judged[-1] < 0.95 * judged[0]
    network = with_adapters(config, resolve_model(str(tiny)), CPU)
    assert all(isinstance(adapter.linear, FrozenLinear) for _, adapter in adapters(network))


def test_a_loss_that_is_not_finite_stops_before_the_step(
    tmp_path: Path, pictures: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad: list[str] = []

    def damaged(config: PretrainConfig, at: At, *rest: object) -> Batch:
        batch = noised(config, at, *rest)  # pyright: ignore[reportArgumentType]
        if at.step == 3:
            batch.x0_BNC[-1, 0, 0] = float("nan")
            bad.append(batch.names[-1])
        return batch

    config = plan(tmp_path / "run", pictures, tiny, cache, held_out=0.0)
    with monkeypatch.context() as patched, pytest.raises(NumericsError, match="step 3: ") as caught:
        patched.setattr("train.sources.noised", damaged)
        lora.run(config)
    assert str(caught.value).endswith(f"pictures whose loss is not finite: {bad[0]}") and len(bad) == 1
    found = sharded.latest(config.run_dir, lora.Ranks(CPU))
    assert found is not None and found.step == 3
    assert lora.run(config).finished  # nothing of the bad step is in what was saved
    assert rows(config.run_dir)[-1]["loss"] > 0


# --------------------------------------------------------------------------------------------------------------- data


def test_an_epoch_has_every_picture_once(tmp_path: Path, pictures: Path, tiny: Path, cache: Path) -> None:
    config = plan(tmp_path / "run", pictures, tiny, cache, steps=50, batch=2, accumulate=2)
    files = resolve_model(str(tiny))
    folder = read_folder(config, (64,))
    source = FolderSource(config, folder, Cache(config, files, CPU, lambda _: None))
    stages = as_pretraining(config, files.preset, "cpu").stages
    assert isinstance(stages[0], Stage) and len(folder.held) == 1 and len(folder.buckets()) == 3
    order = [group for step in range(50) for group in source.groups(locate(stages, step))]
    an_epoch = sum(-(-len(found) // 2) for found in folder.buckets().values())
    epochs = [order[i : i + an_epoch] for i in range(0, len(order) - an_epoch, an_epoch)]
    for epoch in epochs:
        seen = Counter(picture for _, refs in epoch for picture in refs)
        assert seen == Counter(folder.training)
        assert all(len(refs) <= 2 and len({(p.shape) for p in refs}) == 1 for _, refs in epoch)  # pyright: ignore[reportAttributeAccessIssue]
    assert epochs[0] != epochs[1]
    # A function of the step alone: a resumed run asks in another order.
    fresh = FolderSource(config, folder, source.cache)
    assert fresh.groups(locate(stages, 31)) == order[62:64]


def test_only_what_changed_is_encoded_again(tmp_path: Path, tiny: Path) -> None:
    pictures = draw_folder(tmp_path / "pictures", 4)
    kept = tmp_path / "cache"
    config = plan(tmp_path / "run", pictures, tiny, kept, steps=1)
    counts: list[tuple[int, int, bool]] = []

    def count() -> None:
        told: list[str] = []
        lora.run(replace(config, run_dir=tmp_path / f"run{len(counts)}"), told.append)
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
    lora.run(plan(tmp_path / "run", pictures, tiny, tmp_path / "cache", steps=1), told.append)
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
    assert choose(tmp_path, "nano", None, []).batch == 4 and choose(tmp_path, "lens", None, []).checkpointing == "full"
    small = choose(tmp_path, "lens", None, ["rank=8"], recipe="lora-8gb")
    assert (small.quant, small.bases, small.rank) == (Quant.nf4, (512,), 8)
    assert choose(tmp_path, "lens-base", None, [], full=True).tune == "full"
    assert choose(tmp_path, "lens", None, []).bases_of(get("lens")) == (512, 768, 1024)
    for wrong in (
        "rank=0", "dropout=1", "quant=fp8", "quant=q9", "bases=abc", "learning_rate=0", "learning_rate=inf",
        "warmup=-1", "previews=-1", "time_std=-1", "betas=0.9,1", "weight_decay=-1", "alpha=inf", "ema_decay=1",
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
    lora.run(config)
    noted = (config.run_dir / "config.json").read_bytes()
    monkeypatch.setattr(lora, "files_sha256", lambda _paths: "0" * 64)
    with pytest.raises(CheckpointError, match="another model's weights"):
        lora.run(replace(config, learning_rate=0.5))
    assert (config.run_dir / "config.json").read_bytes() == noted  # what was refused has not become the run's


def test_a_distilled_model_is_said_to_be_one(tmp_path: Path) -> None:
    config = choose(tmp_path, "lens-turbo", None, [])
    (said,) = lora_plan.notes(config, get("lens-turbo"), None, "cuda")
    assert said.startswith("lens-turbo is distilled") and not lora_plan.notes(config, get("lens-base"), None, "cuda")
