"""Fine-tuning on a folder of pictures, as low-rank adapters or whole: one function, one loop.

The order in the loop is fixed: validate, preview, save, stop, step, log. Running the same command again resumes, and a
resumed run equals an uninterrupted one: order, dropout, times and noise derive from (seed, step).

What makes it Lens's: times are drawn with the paper's mu(n) of each bucket, a dropped caption is *no text tokens* as
in inference's unconditional branch, and previews walk inference's own schedule. Source: the Lens paper, section 2.3.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backend.checkpoints.identity import files_sha256
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.disk import write_atomic
from backend.errors import CheckpointError, FileError, UsageError, first_line, os_reason
from backend.lora.keys import listed
from backend.memory.device import choose_device
from backend.memory.exhausted import out_of_memory_in_training
from backend.sizes import GRID
from train import overrides
from train.config import At, PretrainConfig, learning_rate, locate
from train.lora import files as lora_files
from train.lora.adapters import begin_with, read_start, unfrozen, with_adapters
from train.lora.config import KIND, LoraConfig, as_pretraining, target_shapes
from train.lora.pictures import read_folder
from train.lora.plan import notes
from train.lora.previews import Drawn, drawn_prompts, sheet
from train.lora.source import Cache, FolderSource
from train.run import batch as sources
from train.run import checkpoints, parts
from train.run.batch import Batch, Grid, Loaded
from train.run.distributed import Ranks
from train.run.ema import EMA
from train.run.metrics import Metrics
from train.run.pace import Pace
from train.run.step import Diverged, Taken, Trained
from train.run.stopping import Stopper, stopped_before

TIMES = 8  # at which each held-out picture is judged: (i + 1/2) / 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    finished: bool  # False: it was asked to stop, and the same command goes on
    files: tuple[Path, ...]  # written, the first is what `lens gen` is given; (): stopped before the first step
    caption: str  # one that was trained on, for trying it


def run(config: LoraConfig, say: Say = lambda _: None) -> Result:
    """Fine-tune; `say` is told what is being done. Raises LensError."""
    _alone()
    with out_of_memory_in_training("--recipe lora-8gb, --quant nf4, or --set batch=1, bases=512, checkpointing=full"):
        return _run(config, say)


def _run(config: LoraConfig, say: Say) -> Result:
    # 1. The model, the device, the run's folder; what cannot be is said before anything is encoded.
    files = resolve_model(config.model)
    device = choose_device(config.device)
    plan = as_pretraining(config, files.preset, str(device))
    _check_folder(config)
    for note in notes(config, files.preset, files, device.type):
        say(note)
    begun = bool(checkpoints.folders(config.run_dir))
    begin = None
    if config.tune == "lora":
        target_shapes(config, files.preset.params.dit)
        if config.start_from is not None and not begun:
            begin = read_start(config.start_from, config, files.preset.params.dit)
    # 2. The pictures and captions, encoded; the encoders are gone afterwards.
    cache = Cache(config, files, device, say)
    folder = read_folder(config, config.bases_of(files.preset), cache.has_latent)
    for key, why in folder.left_out:
        say(f"left out: {key}: {why}")
    shown = drawn_prompts(config, folder, files.preset)
    with parts.alone(config.run_dir):  # only now: a command that is refused leaves no folder
        cache.fill(folder, [drawn.prompt for drawn in shown])
        source = FolderSource(config, folder, cache)
        # 3. The network, its optimiser, and the newest checkpoint.
        network = with_adapters(config, files, device) if config.tune == "lora" else unfrozen(files, device)
        if begin is not None:
            begin_with(network, begin)
            say(f"beginning with {begin.path}: {len(begin.updates)} linears")
            if begin.unmatched:
                say(f"left aside, as this model has no such part: {listed(begin.unmatched)}")
        trained = Trained(plan, Ranks(device), model=network)
        found = _resume(config, files, trained, source, say)
        average = _average(config, trained, found)
        _write_config(config)  # only now: a command that is refused must not replace the run's own
        count = sum(p.numel() for p in network.parameters() if p.requires_grad)
        say(f"training {count:,} numbers on {len(folder.training):,} pictures, {len(folder.held):,} held out")
        # 4. The loop, and what it leaves behind.
        start = found.step if found else 0
        metrics = Metrics(config.run_dir, start, say=say, wandb=config.wandb, about=overrides.as_json(config))
        with contextlib.closing(metrics):
            step = _loop(_Run(config, plan, files, trained, average, source, shown, metrics), start)
        written: tuple[Path, ...] = ()
        if step:  # else it was stopped before anything was learned
            with _averaged(average, trained):
                written = lora_files.export(config, files, trained.model, step, say)
        return Result(step, step == config.steps, written, folder.training[0].caption)


@dataclass
class _Run:
    """What the loop works on."""

    config: LoraConfig
    plan: PretrainConfig
    files: ModelFiles
    trained: Trained
    average: EMA | None
    source: FolderSource
    shown: Sequence[Drawn]
    metrics: Metrics
    judged: dict[str, float] = field(default_factory=dict[str, float])  # newest validation

    def __post_init__(self) -> None:
        self.held = self.source.held(self.plan.stages[0])
        self.writer = checkpoints.Writer(
            self.config.run_dir, self.trained.ranks, keep=self.config.keep, background=False
        )

    def look(self, step: int, loss: float) -> None:
        """Validation and previews, where it is time; of the average, where there is one."""
        config, last = self.config, step == self.config.steps
        with _averaged(self.average, self.trained):
            if self.held and (last or step % config.validate_every == 0):
                self.judged = validate(self.plan, self.trained, self.held)
                if step:
                    self.metrics.log(step, loss=loss, **self.judged)
            if self.shown and (last or step % config.preview_every == 0):
                self.metrics.picture(step, sheet(self.trained.model, self.files, self.source.cache, self.shown))
                if config.tune == "lora" and step:
                    lora_files.write_step(config, self.files, self.trained.model, step)

    def save(self, step: int) -> None:
        tensors, state = self.trained.tensors(), _identity(self.config, self.files, self.source)
        if self.average is not None:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.average.shadow.items()}
            state["ema_updates"] = self.average.updates
        self.writer.save(step, tensors, state)


def _loop(this: _Run, start: int) -> int:
    """Train from step `start` on; returns the step that was reached and saved."""
    config, plan, trained = this.config, this.plan, this.trained
    taken = Taken(float("nan"), float("nan"), None, asked_to_stop=False)
    pace = Pace(plan, start, world=1) if config.tune == "full" else _Pace(plan, start, world=1)
    with Stopper() as stopper:
        for step in range(start, config.steps + 1):
            later = step != start
            with pace.paused():
                if later or step == 0:  # what fine-tuning changes is seen beside what was there before
                    this.look(step, taken.loss)
                # Read once: a signal between two looks must not end it unsaved.
                stop = step == config.steps or stopper.asked
                if later and (stop or step % config.save_every == 0):
                    this.save(step)
            if stop:
                return step

            at = locate(plan.stages, step)
            batches, rate = _batches(plan, this.source, at), learning_rate(plan, at)
            try:
                taken = trained.step(batches, rate, stop=stopper.asked)
            except Diverged as error:
                raise stopped_before(step, str(error), config.run_dir, "learning_rate") from error
            if this.average is not None:
                this.average.update(trained.model)
            if step == 0 and this.held:  # with the loss of the first batch, which was the untouched model's too
                this.metrics.log(0, loss=taken.loss, **this.judged)
            pace.count(batches)
            if (step + 1) % config.log_every == 0:
                values = {"loss": taken.loss, "grad_norm": taken.grad_norm, "learning_rate": rate}
                this.metrics.log(step + 1, **values, **pace.values(step + 1))
    raise AssertionError("the loop ends by itself")


def _batches(plan: PretrainConfig, source: FolderSource, at: At) -> list[Batch]:
    """The passes of a step."""
    groups = sources.share(source.groups(at), rank=0, world=1, micro_batch=plan.micro_batch, average=plan.average)
    return [sources.noised(plan, at, group, source.load(at, group)) for group in groups]


def _averaged(average: EMA | None, trained: Trained) -> contextlib.AbstractContextManager[None]:
    """The network is the average meanwhile, where there is one."""
    return contextlib.nullcontext() if average is None else average.shown(trained.model)


# -------------------------------------------------------------------------------------------------------- validation


@torch.no_grad()
def validate(plan: PretrainConfig, trained: Trained, held: Sequence[tuple[Grid, Loaded]]) -> dict[str, float]:
    """Mean loss over held-out pictures, each at eight fixed times with its own fixed noise; and of each bucket.

    Comparable across steps, resumes and runs with the same pictures. Of each picture the noise depends on its key.
    """
    rows: list[tuple[Grid, float]] = []
    at_once = plan.micro_batch or plan.stages[0].batch
    for grid, loaded in held:
        digest = hashlib.blake2b(f"validation {loaded.names[0]}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        losses: list[float] = []
        for first in range(0, TIMES, at_once):
            numbers = range(first, min(first + at_once, TIMES))
            x0_BNC = loaded.x0_BNC.expand(len(numbers), -1, -1)
            batch = Batch(
                x0_BNC=x0_BNC,
                eps_BNC=torch.randn(x0_BNC.shape, generator=generator).to(x0_BNC.device),
                t_B=torch.tensor([(i + 0.5) / TIMES for i in numbers], device=x0_BNC.device),
                text_BLTF=loaded.text_BLTF.expand(len(numbers), -1, -1, -1),
                mask_BL=loaded.mask_BL.expand(len(numbers), -1),
                grid=grid,
                weights_B=torch.ones(len(numbers), device=x0_BNC.device),
                names=loaded.names * len(numbers),
                labels_BN2=None,
            )
            losses += trained.losses(trained.model, batch).tolist()
        rows.append((grid, sum(losses) / TIMES))
    out = {"validation": _mean([loss for _, loss in rows])}
    grids = sorted({grid for grid, _ in rows})
    if len(grids) > 1:
        for h, w in grids:
            name = f"validation_{w * GRID}x{h * GRID}"
            out[name] = _mean([loss for grid, loss in rows if grid == (h, w)])
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Pace(Pace):
    """Of what is frozen no gradient is computed: two passes where pre-training has three."""

    def values(self, step: int) -> dict[str, float]:
        self.flops *= 2 / 3
        return super().values(step)


# ------------------------------------------------------------------------------------------------- the run's folder


def _alone() -> None:
    """Raises UsageError under torchrun: every process would write the same files."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UsageError(
            f"fine-tuning runs in one process, and torchrun started {count} (WORLD_SIZE)",
            hint="lens train lora … without torchrun; several GPUs serve `torchrun -m train.pretrain` only",
        )


def _check_folder(config: LoraConfig) -> None:
    """Raises UsageError where the folder holds something else."""
    path = config.run_dir / "config.json"
    if not path.exists():
        if config.run_dir.is_file() or (config.run_dir / "checkpoints").exists():
            raise UsageError(f"{config.run_dir}: not a fine-tuning run", hint="another --run-dir")
        return
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise FileError(
            f"{path}: unreadable ({first_line(error)})", hint="restore it, or take another --run-dir"
        ) from error
    if kind != KIND:
        raise UsageError(f"{config.run_dir} holds another kind of run", hint="another --run-dir")


def _write_config(config: LoraConfig) -> None:
    try:
        config.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make {config.run_dir}: {os_reason(error)}") from error
    text = json.dumps({"kind": KIND, **overrides.as_json(config)}, indent=1) + "\n"
    write_atomic(config.run_dir / "config.json", text.encode())


def _identity(config: LoraConfig, files: ModelFiles, source: FolderSource) -> dict[str, Any]:
    """What a checkpoint must agree with."""
    return {
        "kind": KIND,
        "tune": config.tune,
        **({"rank": config.rank, "alpha": config.alpha, "quant": config.quant} if config.tune == "lora" else {}),
        "seed": config.seed,
        "batch": config.batch,
        "accumulate": config.accumulate,
        "base_sha256": files_sha256(files.transformer),
        "data": source.fingerprint,
        "params": overrides.as_json(files.preset.params.dit),
    }


def _resume(
    config: LoraConfig, files: ModelFiles, trained: Trained, source: FolderSource, say: Say
) -> checkpoints.Found | None:
    """Take over the newest checkpoint; None: there is none. Raises CheckpointError, UsageError."""
    found = checkpoints.latest(config.run_dir, trained.ranks)
    if found is None:
        return None
    before: Mapping[str, Any] = found.state
    what = {
        "tune": "the other of --set tune=lora and tune=full",
        "rank": f"another rank ({before.get('rank')})",
        "alpha": f"another alpha ({before.get('alpha')})",
        "quant": f"another quant ({before.get('quant')}): an adapter fits the weights it was trained beside",
        "seed": f"another seed ({before.get('seed')})",
        "batch": f"another batch ({before.get('batch')}), with which it would jump in the order of its pictures",
        "accumulate": f"another accumulate ({before.get('accumulate')}), with which it would jump in that order",
        "base_sha256": "another model's weights",
        "data": "other pictures or captions than there are now",
    }
    for key, now in _identity(config, files, source).items():
        if key in what and before.get(key, now) != now:  # one of before a key was noted goes on
            raise CheckpointError(
                f"{config.run_dir}: the run began with {what[key]}", hint="as it began, or another --run-dir"
            )
    learned = {f"model.{name}" for name, p in trained.model.named_parameters() if p.requires_grad}
    if learned != {name for name in found.names if name.startswith("model.")}:
        raise CheckpointError(
            f"{config.run_dir}: the run began with other targets", hint="as it began, or another --run-dir"
        )
    if found.step > config.steps:
        raise UsageError(f"{config.run_dir} is at step {found.step:,} already, steps={config.steps:,}")
    trained.restore(found)
    say(f"going on from step {found.step:,}")
    return found


def _average(config: LoraConfig, trained: Trained, found: checkpoints.Found | None) -> EMA | None:
    """The average of what is trained, as the checkpoint has it; of one without, it begins here."""
    if config.ema_decay is None:
        return None
    average = EMA(trained.model, config.ema_decay)
    there = {f"ema.{name}": tensor for name, tensor in average.shadow.items()}
    if found is not None and there.keys() <= found.names:
        checkpoints.read(found, there, trained.ranks)
        average.updates = int(found.state.get("ema_updates", 0))
    return average


if __name__ == "__main__":
    sys.exit("error: fine-tuning is started by `lens train lora`, in one process")
