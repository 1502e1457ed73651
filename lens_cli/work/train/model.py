"""The model that a training is about, and the device, before anything of it has to be on this disk."""

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


def planned_device(device: str, preset: Preset) -> str:
    """The type of device that a dry run is about; "auto" is a GPU but for a model inside the package."""
    kind = device.partition(":")[0]
    if kind == "auto":
        return "cpu" if preset.embedded is not None else "cuda"
    return kind
