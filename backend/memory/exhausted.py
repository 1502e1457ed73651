"""How much memory this process has used at most, and what it means to run out of it."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backend.errors import OutOfMemoryError, first_line

if TYPE_CHECKING:
    import torch

    from backend.types import GenerationRequest

# torch's CPU allocator, and what lies beneath or beside torch on a GPU, say it in a RuntimeError's words.
_HOST_WORDS = ("DefaultCPUAllocator: can't allocate", "not enough memory: you tried")
_GPU_WORDS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "MPS backend out of memory",
)


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
    # Linux: the mark that a child does not inherit. The one below is that of a large program that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes


def ran_out(error: BaseException) -> bool:
    """Whether memory is what failed, the host's or a GPU's."""
    import torch

    if host_ran_out(error) or isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GPU_WORDS)


def host_ran_out(error: BaseException) -> bool:
    """Whether the host's memory is what failed: Python's, torch's, or what was to be pinned of it."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _HOST_WORDS)


@contextmanager
def out_of_memory_as(named: Callable[[BaseException], OutOfMemoryError]) -> Iterator[None]:
    """torch's and Python's out-of-memory errors -> the one with an exit code and a hint, which `named` makes."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
        if not ran_out(error):
            raise
        raise named(error) from error


def out_of_memory_as_error(request: GenerationRequest) -> AbstractContextManager[None]:
    """Around making a picture."""
    return out_of_memory_as(lambda error: too_little(request, error))


def out_of_memory_in_training(hint: str) -> AbstractContextManager[None]:
    """Around a training run; `hint` names the settings that take less."""
    return out_of_memory_as(lambda error: OutOfMemoryError(f"memory ran out: {first_line(error)}", hint=hint))


def too_little(request: GenerationRequest, error: BaseException) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"not enough memory for {request.width}x{request.height} with {request.model}: {first_line(error)}",
        hint="Try a smaller --base, --dtype bfloat16, --quant nf4, --vram with less than the card has, or another "
        "--device.",
    )


def give_back_freed(device: torch.device) -> None:
    """What torch's allocator keeps of freed memory, to the GPU. Takes milliseconds."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def trim_host() -> None:
    """What glibc keeps of freed memory (120 MB after one picture of Lens-Nano), to the system. Takes milliseconds."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries
        if trim is not None:
            trim(0)


def give_back(device: torch.device) -> None:
    """What nobody holds any more, to the system and to the GPU: pinned memory too, which torch would keep."""
    gc.collect()
    trim_host()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()
