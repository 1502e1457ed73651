"""From a request and its files to the memory plan: what the headers say, what the machine has, and the cap on a GPU.

Light ring at import; torch only where a GPU is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backend.checkpoints.headers import FileFormat, read_summary
from backend.checkpoints.packing_plan import QuantPlan, plan_quant
from backend.errors import OutOfMemoryError
from backend.kernels import switches
from backend.lora.names import block_bits
from backend.lora.own import own_loras
from backend.memory.footprint import CUDA_CONTEXT, Job
from backend.memory.plan import MachineMemory, MemoryPlan, ModelBytes, make_plan
from backend.types import DType, Encoder, GenerationRequest

if TYPE_CHECKING:
    import torch

    from backend.checkpoints.resolve import ModelFiles

ITEMSIZE = {DType.float32: 4, DType.bfloat16: 2}
_NAMES = {DType.float32: "float32", DType.bfloat16: "bf16"}
_STORED = {DType.float32: ("F32", "0"), DType.bfloat16: ("BF16", "30")}  # safetensors' name, ggml's number


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A memory plan and what it was made from, for the step after it."""

    plan: MemoryPlan
    model: ModelBytes
    machine: MachineMemory
    dtype: DType  # the arithmetic, never auto
    quant: QuantPlan
    reason: str | None = None  # why the GPU that is here is left alone; None: it is not, or there is none

    @property
    def linear_bytes(self) -> int:
        """Bytes that the linears of the transformer's blocks take in memory."""
        return self.quant.linear_bytes(ITEMSIZE[self.dtype])


def plan_run(request: GenerationRequest, files: ModelFiles, machine: MachineMemory) -> RunPlan:
    """How a request will run on this machine. A GPU that nobody asked for, and that is too small even for the leanest
    plan, is left alone for the CPU. Raises OutOfMemoryError where nothing fits, UsageError, CheckpointError."""
    try:
        return plan_request(request, files, machine)
    except OutOfMemoryError as error:
        wished = request.device != "auto" or request.profile is not None or request.vram is not None
        if machine.device == "cpu" or wished:
            raise
        reason = str(error)
    return replace(
        plan_request(request, files, MachineMemory(device="cpu", host_free=machine.host_free)),
        reason=f"the GPU: {reason}",
    )


def plan_request(request: GenerationRequest, files: ModelFiles, machine: MachineMemory) -> RunPlan:
    """On this machine's device and no other. Raises what `plan_run` does."""
    dtype = choose_arithmetic(request.dtype, machine.device, files)
    quant = plan_quant(
        files, request.quant, itemsize=ITEMSIZE[dtype], on_cpu=machine.device == "cpu",
        free_memory=machine.host_free,
    )  # fmt: skip
    model = describe(request, files, dtype, quant)
    plan = make_plan(model, machine, profile=request.profile, vram=request.vram)
    return RunPlan(plan=plan, model=model, machine=machine, dtype=dtype, quant=quant)


def describe(request: GenerationRequest, files: ModelFiles, dtype: DType, quant: QuantPlan) -> ModelBytes:
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
        text_tokens=template.room,  # as long as a prompt can be
        itemsize=ITEMSIZE[dtype],
        block_bits=block_bits((*own_loras(files), *request.loras), params.dit, quant, itemsize=ITEMSIZE[dtype]),
        bitsandbytes=quant.bitsandbytes,
    )
    # A fused LoRA makes tensors of its own, and so does packing at load.
    mapped = not (files.adapters or request.loras) and not quant.packed and _mostly_stored_as(files, _STORED[dtype])
    held = (quant.scheme or str(quant.quant)) if packed else _NAMES[dtype]
    return ModelBytes(job=job, held=held, mapped=mapped, llama=request.encoder is Encoder.llama)


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


def look_at(device: torch.device) -> MachineMemory:
    """What is free at this moment, and what the switches leave of a GPU's ways. Raises UsageError for a bad switch."""
    switches.check()
    free = host_free()
    if device.type == "cuda":
        import torch

        left, card = torch.cuda.mem_get_info(device)
        # The context is there by now, and the plan counts it; what an earlier run left in the allocator can be reused.
        own = CUDA_CONTEXT + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _cuda(card, min(card, left + own), free)
    if device.type == "mps":
        import torch

        card = int(torch.mps.recommended_max_memory())
        left = max(card - int(torch.mps.driver_allocated_memory()), 0)
        return MachineMemory(device="mps", card=card, card_free=min(left, free), host_free=free)
    return MachineMemory(device=device.type, host_free=free)


def _cuda(card: int, card_free: int, free: int) -> MachineMemory:
    graphs, streams = not switches.GRAPHS.is_plain, switches.STREAM.value != "off"
    return MachineMemory(device="cuda", card=card, card_free=card_free, host_free=free, graphs=graphs, streams=streams)


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
def capped(plan: MemoryPlan, device: torch.device) -> Iterator[None]:
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


def forecast(request: GenerationRequest, files: ModelFiles) -> tuple[RunPlan | None, str | None]:
    """(the plan that a run would begin with, None), or (None, why there is none). Reads headers only.

    With `vram` or a GPU's profile it is the plan for that card, whether or not one is here. Raises UsageError.
    """
    try:
        return plan_run(request, files, expected_machine(request)), None
    except OutOfMemoryError as error:
        return None, str(error)


def expected_machine(request: GenerationRequest) -> MachineMemory:
    """The machine of a run: this one, or one with the card that the request names. Raises UsageError."""
    switches.check()
    if request.device == "cpu":
        return MachineMemory(device="cpu", host_free=host_free())
    named = request.vram or _card_of(request.profile)
    # torch is asked where there may be a GPU, and where one was asked for that is then said not to be here.
    if has_gpu() or (request.device != "auto" and not named):
        from backend.memory.device import choose_device

        device = choose_device(request.device)
        if device.type != "cpu":
            return look_at(device)
    if named:
        return _cuda(named, named, host_free())
    return MachineMemory(device="cpu", host_free=host_free())


def _card_of(profile: str | None) -> int:
    from backend.memory.plan import find_profile

    return 0 if profile is None else find_profile(profile).card
