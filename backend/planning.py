"""From a request and its files to the memory plan: what the headers say, what the machine has, and the cap on a GPU.

Light ring at import; torch only where a GPU is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.errors import OutOfMemoryError
from backend.footprint import CUDA_CONTEXT, Job
from backend.model.headers import FileFormat, read_summary
from backend.quant_plan import QuantPlan, plan_quant
from backend.residency import Machine, Model, Plan, make_plan
from backend.types import DType, Encoder, GenerationRequest, Quant

if TYPE_CHECKING:
    import torch

    from backend.weights import ModelFiles

_ITEMSIZE = {DType.float32: 4, DType.bfloat16: 2}
_NAMES = {DType.float32: "float32", DType.bfloat16: "bf16"}
_STORED = {DType.float32: ("F32", "0"), DType.bfloat16: ("BF16", "30")}  # safetensors' name, ggml's number


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan and what it was made from, for the step after it."""

    plan: Plan
    model: Model
    machine: Machine


def plan_request(
    request: GenerationRequest, files: ModelFiles, machine: Machine, dtype: DType, quant: QuantPlan
) -> Planned:
    """`dtype`: the arithmetic, never auto. Raises OutOfMemoryError where nothing fits, and UsageError."""
    model = describe(request, files, dtype, quant)
    return Planned(
        plan=make_plan(model, machine, profile=request.profile, vram=request.vram), model=model, machine=machine
    )


def describe(request: GenerationRequest, files: ModelFiles, dtype: DType, quant: QuantPlan) -> Model:
    """From the request and the headers of its files. Raises CheckpointError for a damaged one."""
    params = files.preset.params
    template = params.text.template
    packed = quant.packed and quant.bits is not None
    job = Job(
        params=params,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guided=request.guidance != 1.0,
        text_tokens=template.max_tokens - template.prefix_tokens,  # as long as a prompt can be
        itemsize=_ITEMSIZE[dtype],
        block_bits=quant.bits if packed else None,
    )
    # A fused LoRA makes tensors of its own, and so does packing at load.
    mapped = not request.loras and not quant.packed and _mostly_stored_as(files, _STORED[dtype])
    held = (quant.scheme or str(quant.quant)) if packed else _NAMES[dtype]
    return Model(job=job, held=held, mapped=mapped, llama=request.encoder is Encoder.llama)


def choose_arithmetic(wanted: DType, device: str, files: ModelFiles) -> DType:
    """auto: bfloat16 on an accelerator; on a CPU float32, except for a transformer stored in bfloat16.

    A bfloat16 checkpoint gains nothing from float32 arithmetic but twice the memory; a float32 or 8-bit one would
    lose. `device`: torch's type of it.
    """
    if wanted is not DType.auto:
        return wanted
    if device != "cpu" or _mostly_stored_as(files, ("BF16",)):
        return DType.bfloat16
    return DType.float32


def _mostly_stored_as(files: ModelFiles, kinds: tuple[str, ...]) -> bool:
    """Whether more than half of the transformer's bytes are of these kinds."""
    total = fitting = 0
    for path in files.transformer:
        header = read_summary(path)
        gguf = header.format is FileFormat.gguf
        for tensor in header.tensors.values():
            total += tensor.nbytes
            fitting += tensor.nbytes if tensor.dtype in kinds and tensor.dtype.isdigit() == gguf else 0
    return 2 * fitting > total


# The machine ---------------------------------------------------------------------------------------------------------


def look_at(device: torch.device) -> Machine:
    """What is free at this moment."""
    free = host_free()
    if device.type == "cuda":
        import torch

        left, card = torch.cuda.mem_get_info(device)
        # The context is there by now, and the plan counts it; what an earlier run left in the allocator can be reused.
        own = CUDA_CONTEXT + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Machine(device="cuda", card=card, card_free=min(card, left + own), host_free=free)
    if device.type == "mps":
        import torch

        card = int(torch.mps.recommended_max_memory())
        left = max(card - int(torch.mps.driver_allocated_memory()), 0)
        return Machine(device="mps", card=card, card_free=min(left, free), host_free=free)
    return Machine(device=device.type, host_free=free)


def host_free() -> int:
    """Bytes that the system would give without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def has_gpu() -> bool:
    """Whether it is worth importing torch to ask for a GPU: a driver is installed, or this is a Mac."""
    if sys.platform == "darwin":
        return True
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@contextmanager
def capped(plan: Plan, device: torch.device) -> Iterator[None]:
    """Within it torch's allocator refuses what would pass the plan's cap, as a card of that size would."""
    if plan.cap is None or device.type != "cuda":
        yield
        return
    import torch

    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(max(plan.cap - CUDA_CONTEXT, 1) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def forecast(request: GenerationRequest, files: ModelFiles) -> tuple[Planned | None, str | None]:
    """(the plan that a run would begin with, None), or (None, why there is none). Reads headers only.

    With `vram` or a GPU's profile it is the plan for that card, whether or not one is here. Raises UsageError.
    """
    machine = _expected(request)
    dtype = choose_arithmetic(request.dtype, machine.device, files)
    quant = plan_quant(
        files, Quant(request.quant), itemsize=_ITEMSIZE[dtype], on_cpu=machine.device == "cpu",
        free_memory=machine.host_free,
    )  # fmt: skip
    try:
        return plan_request(request, files, machine, dtype, quant), None
    except OutOfMemoryError as error:
        return None, str(error)


def _expected(request: GenerationRequest) -> Machine:
    """The machine of a run: this one, or one with the card that the request names."""
    if request.device != "cpu" and has_gpu():
        from backend.pipeline import choose_device

        device = choose_device(request.device)
        if device.type != "cpu":
            return look_at(device)
    named = request.vram or _card_of(request.profile)
    if named and request.device != "cpu":
        return Machine(device="cuda", card=named, card_free=named, host_free=host_free())
    return Machine(device="cpu", host_free=host_free())


def _card_of(profile: str | None) -> int:
    from backend.residency import find_profile

    return 0 if profile is None else find_profile(profile).card
