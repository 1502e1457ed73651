"""ggml, the library of tensors that comes with llama.cpp: found, loaded, and with how many threads it computes."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from backend.errors import LensError, as_missing_package


def load_ggml(hint: str = "Install llama-cpp-python again.") -> ctypes.CDLL:
    """The library of tensors beneath llama.cpp. Raises LensError where it cannot be loaded."""
    try:
        import llama_cpp
        from llama_cpp import _ctypes_extensions

        folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(llama_cpp.__file__).parent / "lib")
        return _ctypes_extensions.load_shared_library("ggml-base", folder)
    except ModuleNotFoundError as error:
        raise as_missing_package(error) or error from error
    except (ImportError, OSError, RuntimeError) as error:  # a build for another processor, a missing libgomp
        raise LensError(f"llama.cpp cannot be loaded: {error}", hint=hint) from error


def default_threads() -> int:
    """OMP_NUM_THREADS where it is a number, as torch takes it; else the physical cores this process may use."""
    import psutil

    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))
