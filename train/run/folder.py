"""The folder of a pre-training run: may it be used, what must its checkpoints agree with, where do weights begin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.disk import make_folder, write_atomic
from backend.errors import CheckpointError, FileError, LensError, UsageError
from train import overrides
from train.config import PretrainConfig
from train.run import checkpoints, parts
from train.run.batch import BatchSource
from train.run.distributed import Ranks
from train.run.step import Trained


def start_problem(where: Path) -> LensError | None:
    """Why nothing can start from there, as far as that is seen at once; None: nothing speaks against it."""
    from backend.checkpoints.resolve import resolve_model

    hint = "--set start_from=RUN or a model; start_from=none trains from nothing"
    if checkpoints.folders(where):
        return None
    if (where / "checkpoints").is_dir():
        return CheckpointError(f"start_from={where}: a run without a checkpoint", hint=hint)
    try:
        resolve_model(str(where))
    except LensError as error:
        return type(error)(f"start_from={where}: {error}", hint=hint)
    return None


def start_weights(where: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Weights to train on: the newest checkpoint of a run (not its average), or a model's transformer."""
    found = checkpoints.latest(where, ranks)  # every rank verifies its share of the files
    if found is not None:
        return checkpoints.read_whole(found, "model")
    from backend.checkpoints.resolve import resolve_model
    from backend.loading import load_transformer

    return dict(load_transformer(resolve_model(str(where)), torch.float32, "cpu").state_dict())


@contextlib.contextmanager
def kept(run_dir: Path, ranks: Ranks) -> Generator[None]:
    """The run's folder, made, and this run's alone meanwhile. Raises on every rank why it cannot be."""
    with contextlib.ExitStack() as stack:
        found = None
        if ranks.first:
            found = problem(run_dir)
            try:
                if found is None:
                    stack.enter_context(parts.alone(run_dir))
            except LensError as error:
                found = error
        ranks.together(found)
        yield


def problem(run_dir: Path) -> LensError | None:
    """Why the run cannot live there; None where it can. Makes the folder."""
    try:
        make_folder(run_dir)
        kind = json.loads((run_dir / "config.json").read_text(encoding="utf-8")).get("kind")
    except FileError as error:
        return FileError(str(error), hint="another --run-dir")
    except (OSError, ValueError, AttributeError):  # none yet, or damaged: it is written anew
        return None
    if kind is not None:
        return UsageError(f"{run_dir} holds another kind of run ({kind})", hint="another --run-dir")
    return None


def state(config: PretrainConfig, trained: Trained, source: BatchSource) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    return {
        "ema_updates": trained.ema.updates if trained.ema else 0,
        "params": overrides.as_json(config.params),
        "data": getattr(source, "fingerprint", None),
        "networks": getattr(source, "networks", None),
        "order": order(config),
        **identity(config),
    }


def identity(config: PretrainConfig) -> dict[str, Any]:
    """What a run keeps for ever, in a stage begun or not: where its pictures come from, the seed of their order, and
    what it started from, by its folder's name: a run and its start may be moved to another machine.

    Not all that decides which pictures a step has. Of packed pictures that is also what `order` notes; of drawn
    scenes shares, batches and rounds may change under way, on purpose: the next step then has other scenes than it
    would have had, none of which is lost, since new ones are drawn for ever.
    """
    start = "none" if config.start_from is None else config.start_from.resolve().name
    return {"source": config.source, "seed": config.seed, "start_from": start}


def order(config: PretrainConfig) -> list[dict[str, Any]] | None:
    """What decides where in the packed pictures a step stands, stage by stage, as JSON holds it; None: drawn ones."""
    if config.source != "packed":
        return None
    begins = [sum(stage.steps for stage in config.stages[:i]) for i in range(len(config.stages))]
    return [
        {"begins": step, "groups": stage.groups, "batches": [[base.base, base.batch] for base in stage.bases]}
        for step, stage in zip(begins, config.stages, strict=True)
        if stage.steps
    ]


def may_go_on(config: PretrainConfig, found: checkpoints.Found) -> None:
    """Raises UsageError or CheckpointError where the run cannot go on from what was found."""
    for name, now in identity(config).items():
        before = found.state.get(name)
        if before is not None and before != now:
            raise CheckpointError(
                f"{found.folder}: the run began with {name}={before}, this is {name}={now}",
                hint="as it began, or a new run: --set start_from=… --run-dir …",
            )
    before, now = found.state.get("order"), order(config)  # no order: of before it was noted
    if before is not None and now is not None:
        began, begin = ([stage for stage in stages if stage["begins"] < found.step] for stages in (before, now))
        if began != begin:
            raise CheckpointError(
                f"{found.folder}: with other batches, groups or steps of a stage that has begun, the run would jump in "
                f"the order of its pictures; it began with {_stages(began)}, this is {_stages(begin)}",
                hint="as it began, or a new run: --set start_from=… --run-dir …",
            )
    if found.step > config.steps:
        raise UsageError(f"{config.run_dir} is at step {found.step:,} already, the plan ends at {config.steps:,}")


def _stages(stages: list[dict[str, Any]]) -> str:
    """In the words of --set, as one line."""
    words = (
        f"groups={stage['groups']}, " + ", ".join(f"batch={batch} of base {base}" for base, batch in stage["batches"])
        + f" from step {stage['begins']:,}"
        for stage in stages
    )  # fmt: skip
    return "; ".join(words)


# What a checkpoint notes of its source: its name there and at the source, and what is said where it has changed.
_SAME = (
    ("data", "fingerprint", "other packed pictures than --data holds now", "give the folder it began with"),
    ("networks", "networks", "another autoencoder or text encoder than these", "encoders, vae, text_encoder as before"),
)


def same_source(found: checkpoints.Found, source: BatchSource) -> None:
    """Raises CheckpointError where the run began with other data, or with other frozen networks: its transformer would
    go on with latents and features that mean something else."""
    for noted, attribute, other, keep in _SAME:
        before = found.state.get(noted)  # None: of before it was noted
        if before is not None and before != getattr(source, attribute, None):
            raise CheckpointError(
                f"{found.folder}: the run began with {other}",
                hint=f"{keep}, or start a new run: --set start_from=… --run-dir …",
            )


def write_config(config: PretrainConfig, ranks: Ranks) -> None:
    if ranks.first:
        text = json.dumps(overrides.as_json(config), indent=1) + "\n"
        write_atomic(config.run_dir / "config.json", text.encode())
    ranks.barrier()
