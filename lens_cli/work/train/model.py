"""The model that a training is about, before anything of it has to be on this disk."""

from __future__ import annotations

from backend.checkpoints.resolve import ModelFiles
from backend.presets import Preset
from backend.requests import find_model
from lens_cli.terminal.console import Talk


def planned_model(name: str, talk: Talk) -> tuple[Preset, ModelFiles | None]:
    """The preset and the files of a model for a dry run: what it takes is known before it is fetched.

    None where it is not here, which is warned of. Raises what `find_model` does.
    """
    found = find_model(name)
    if found.missing is not None:
        talk.warn(f"{found.missing}: {found.missing.hint}" if found.missing.hint else str(found.missing))
    return found.preset, found.files
