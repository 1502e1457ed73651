"""Which device computes, and how much memory is planned for: flags over settings that fit each other.

Light ring: standard library only; the profiles are imported where one is named.
"""

from __future__ import annotations

import re

from backend.errors import UsageError
from backend.wish import Wish

THREADS = range(1, 1025)


def fit_memory(wish: Wish, chosen: Wish) -> tuple[str, str | None, int | None]:
    """(device, profile, bytes of a GPU) that fit each other; a flag for one of them sets the others' defaults aside
    where they contradict it. `chosen` are the settings. Raises UsageError.
    """
    if wish.threads is not None and wish.threads not in THREADS:
        raise UsageError(f"--threads {wish.threads} is outside 1..{THREADS[-1]}")
    profile, vram = wish.profile, wish.vram
    device = check_device(wish.device or chosen.device or "auto")
    by_default = profile is None and vram is None
    if by_default and device not in ("cpu", "mps"):  # a default for the GPU says nothing there
        profile, vram = chosen.profile, chosen.vram
    if profile is None and vram is None:
        return device, None, None
    from backend.memory.plan import find_profile, parse_bytes

    if by_default and vram is None and wish.device not in (None, "auto") and profile and not find_profile(profile).card:
        return device, None, None
    if profile is not None and vram is not None:
        raise UsageError("--profile and --vram exclude each other", hint="--vram picks the profile by itself")
    memory = None if vram is None else parse_bytes(vram)
    if profile is not None:
        row = find_profile(profile)
        profile = row.name
        if not row.card and device not in ("auto", "cpu"):
            raise UsageError(
                f"--profile {profile} and --device {device} contradict each other", hint="drop one of the two"
            )
        if not row.card:
            return "cpu", profile, None
    if device in ("cpu", "mps"):
        typed = f"--profile {profile}" if profile is not None else f"--vram {vram}"
        raise UsageError(f"{typed} is about a CUDA GPU, and the device is {device}", hint="drop one of the two")
    return device, profile, memory


def check_device(device: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; whether it exists is found when it is used. Raises UsageError."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?|mps", device):
        raise UsageError(f"unknown device {device!r}", hint="known: auto, cpu, cuda, cuda:N, mps")
    return device
