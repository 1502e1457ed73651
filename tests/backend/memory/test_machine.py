"""What a run begins with, from headers and a machine that is stated here; the cap on an allocator, with a fake one.

Why it can be trusted: the expected plans follow from a card that is full, absent or named, not from the plan's own
arithmetic (that is `test_residency`), and the fake allocator refuses by the number that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from backend.checkpoints.resolve import resolve_model
from backend.errors import UsageError
from backend.memory import device as devices
from backend.memory import machine as planning
from backend.memory.device import choose_device
from backend.memory.footprint import CUDA_CONTEXT, GB
from backend.memory.machine import ITEMSIZE, capped, forecast
from backend.memory.plan import MachineMemory, make_plan
from backend.types import DType, GenerationRequest
from tests.backend.memory.test_plan import H200, MODEL

REQUEST = GenerationRequest(
    prompt="a fish", model="nano", seeds=(1,), width=256, height=256, steps=4, guidance=1.0, device="auto"
)
FULL = MachineMemory(device="cuda", card=8 * GB, card_free=GB // 10, host_free=32 * GB)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[MachineMemory | None], None]:
    """Put a card into this machine, or take all of them out."""

    def put(machine: MachineMemory | None) -> None:
        monkeypatch.setattr(planning, "has_gpu", lambda: machine is not None)
        if machine is not None:
            monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda", 0))
            monkeypatch.setattr(planning, "look_at", lambda device: machine)

    return put


def test_a_forecast_says_what_the_run_computes_in(card: Callable[[MachineMemory | None], None]) -> None:
    """Lens-Nano is float32 on a CPU and bfloat16 on a card: so are the bytes that its linears take."""
    files = resolve_model("nano")
    for machine, vram, dtype in (
        (None, None, DType.float32),
        (None, 8 * GB, DType.bfloat16),
        (H200, None, DType.bfloat16),
    ):
        card(machine)
        planned, refused = forecast(replace(REQUEST, vram=vram), files)
        assert planned is not None and refused is None and planned.reason is None
        assert planned.dtype is dtype
        assert planned.linear_bytes == ITEMSIZE[dtype] * planned.quant.values
        assert planned.plan.device == ("cpu" if dtype is DType.float32 else "cuda")


def test_a_full_card_is_left_alone_unless_it_was_asked_for(card: Callable[[MachineMemory | None], None]) -> None:
    card(FULL)
    files = resolve_model("nano")
    planned, _ = forecast(REQUEST, files)
    assert planned is not None and planned.plan.device == "cpu" and planned.dtype is DType.float32
    assert "even in the leanest plan; 95.0 MB can be had" in str(planned.reason)
    for wish in ({"device": "cuda"}, {"vram": GB // 10}):
        found, refused = forecast(replace(REQUEST, **wish), files)  # pyright: ignore[reportArgumentType]
        assert found is None and "of memory on the GPU even in the leanest plan" in str(refused)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without an NVIDIA GPU")
def test_a_device_that_is_not_here_is_not_forecast(card: Callable[[MachineMemory | None], None]) -> None:
    card(None)
    with pytest.raises(UsageError, match="'cuda' is not available here"):
        forecast(replace(REQUEST, device="cuda"), resolve_model("nano"))


# ------------------------------------------------------------------------------------------------------------ the card


class FakeCuda:
    """Two cards, one of them current, and an allocator that keeps to its fraction."""

    total, current, fraction = 24 * GB, 1, 1.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def set_fraction(fraction: float, device: torch.device) -> None:
            assert device.index is not None, "torch refuses a device without its number here"
            self.fraction = fraction

        def set_device(device: torch.device) -> None:
            self.current = device.index

        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: self.current,
            "set_device": set_device,
            "mem_get_info": lambda device: (self.total, self.total),
            "set_per_process_memory_fraction": set_fraction,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def allocate(self, size: int) -> None:
        if size > self.fraction * self.total:
            raise torch.OutOfMemoryError(f"tried to allocate {size}")


def test_a_gpu_comes_with_its_number_and_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    for name, index in (("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda", 0)):
        assert choose_device(name) == torch.device("cuda", index) and fake.current == index
    with pytest.raises(UsageError, match="not available"):
        choose_device("cuda:2")


def test_the_cap_is_kept_within_and_lifted_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's allocator may take, and the context beside it, are the amount that was asked for."""
    fake = FakeCuda(monkeypatch)
    device = choose_device("cuda")
    plan = make_plan(MODEL, H200, vram=8 * GB)
    inside: Any = None
    with pytest.raises(torch.OutOfMemoryError), capped(plan, device):
        inside = fake.fraction
        fake.allocate(plan.peak.most - CUDA_CONTEXT)  # what is predicted has room
        fake.allocate(8 * GB - CUDA_CONTEXT - 1000)
        fake.allocate(8 * GB - CUDA_CONTEXT + 1000)
    assert inside * fake.total == pytest.approx(8 * GB - CUDA_CONTEXT)
    assert fake.fraction == 1.0
    for free, where in ((make_plan(MODEL, H200), device), (plan, torch.device("cpu"))):
        with capped(free, where):
            assert fake.fraction == 1.0
