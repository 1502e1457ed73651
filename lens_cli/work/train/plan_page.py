"""What `--dry-run` of a training shows: the plan, which fits a screen, and `--settings`: every field of the recipe.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.disk import free_bytes
from backend.errors import human_bytes
from lens_cli.terminal.console import Talk
from lens_cli.terminal.wrap import say_rows
from lens_cli.work.train.status import duration
from train.overrides import as_json, settings_of


def show_plan(
    config: Any, rows: Sequence[str], numbers: dict[str, Any], talk: Talk, *, disk: float, missing: Sequence[str] = ()
) -> None:
    """The plan on stdout, after it what is missing as warnings; `numbers` join the config in the JSON answer.

    `disk`: bytes that the run takes, beside what is free in its folder.
    """
    say_rows(rows, len(rows[0]) - len(rows[0].partition(" ")[2].lstrip()), talk)  # all labels are as wide as the first
    for each in missing:
        talk.warn(each)
    if disk > free_bytes(config.run_dir):
        talk.warn(f"the run takes {human_bytes(disk)} of disk, more than is free there")
    talk.say(f"nothing was started; --settings lists all {len(settings_of(config))} fields, which --set changes")
    talk.result({"config": as_json(config), **numbers})


def show_settings(config: Any, talk: Talk) -> None:
    """Every field of a resolved recipe on stdout, as `--set` names it and takes it. Starts nothing."""
    rows = settings_of(config)
    width = max(len(key) for key, _ in rows)
    for key, value in rows:
        talk.data(f"{key:<{width}}  {value}".rstrip())
    talk.result({"config": as_json(config)})


def core_time(seconds: float | None, device: str) -> str:
    """How long a training takes by `train.run.costs.CORE_TRAINING`; None: nothing is known about the device."""
    if seconds is None:
        return f"not known for {device} before it runs: lens train status tells"
    return f"about {duration(seconds)} of one core (AVX-512 with bfloat16, not compiled), calculated"
