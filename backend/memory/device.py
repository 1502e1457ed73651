"""Which device computes: chosen by name, and named for a record."""

from __future__ import annotations

import torch

from backend.errors import UsageError


def choose_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu. A GPU comes with its number, and is this process's current one from then on:
    some of torch's calls need a number, and a Triton kernel runs on the current device wherever its tensors lie.

    Raises UsageError for a device that torch cannot use here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}", hint="Use auto, cpu, cuda, cuda:N or mps.") from None
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not usable.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"the device {name!r} is not available here", hint="See `lens doctor`.")
    if device.type != "cuda":
        return device
    device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    """ "cpu", or "cuda:0 (NVIDIA H200)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
