"""The model that a training is about, and the device, before anything of it has to be on this disk."""

from __future__ import annotations

from backend.checkpoints.resolve import ModelFiles
from backend.presets import Preset
from backend.requests import find_model


def planned_model(name: str) -> tuple[Preset, ModelFiles | None, list[str]]:
    """The preset and the files of a model for a dry run: what it takes is known before it is fetched.

    None and a line that says so where it is not here. Raises what `find_model` does.
    """
    found = find_model(name)
    told = found.missing
    missing = [] if told is None else [f"{told}: {told.hint}" if told.hint else str(told)]
    return found.preset, found.files, missing


def planned_device(device: str, preset: Preset) -> str:
    """The type of device that a dry run is about; "auto" is a GPU but for a model inside the package."""
    kind = device.partition(":")[0]
    if kind == "auto":
        return "cpu" if preset.embedded is not None else "cuda"
    return kind
