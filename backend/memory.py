"""How much memory this process has used at most."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_bytes(device: torch.device) -> int:
    """Peak bytes so far: of the CUDA allocator on a GPU, of the process's resident set elsewhere."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """Peak bytes so far of the process's resident set."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
