"""Run a training recipe for the command line: the heavy half of `lens train`."""

from __future__ import annotations

import shlex
from pathlib import Path

from backend.errors import LensError
from lens_cli.terminal.console import Talk
from lens_cli.terminal.training import live
from train.config import PretrainConfig
from train.nano import run as nano
from train.recipes import PARTS, NanoConfig


def run_nano(config: NanoConfig, parts: tuple[str, ...] | None, out: Path | None, talk: Talk) -> None:
    """Train and export Lens-Nano; the folder of the model on stdout, or of the run where none is exported."""
    try:
        with live(talk, None) as say:
            folder = nano.run(config, parts=parts or PARTS, out=out, say=say)
    except FileNotFoundError as error:
        raise LensError(str(error)) from error
    talk.data(folder)
    talk.result({"run_dir": str(config.run_dir), "path": str(folder)})


def run_pretrain(config: PretrainConfig, talk: Talk) -> None:
    """Pre-train; the run's folder on stdout."""
    from train import pretrain

    with live(talk, config.steps) as say:
        pretrain.run(config, say=say)
    talk.data(config.run_dir)
    talk.result({"run_dir": str(config.run_dir), "steps": config.steps})


def run_export(run: Path, out: Path, weights: str | None, dtype: str, talk: Talk) -> None:
    """Write a run's files; their paths on stdout."""
    from train.run.export import export

    paths = export(run, out, weights=weights, dtype=dtype)
    for path in paths:
        talk.data(path)
    talk.say(f'try it: lens gen "a red ball" -m {shlex.quote(str(paths[0]))}')
    talk.result({"paths": [str(path) for path in paths]})
