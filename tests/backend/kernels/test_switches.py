"""Every switch selects what it says. A GPU is pretended where the choice is made, and never touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backend.checkpoints.resolve import resolve_model
from backend.denoising import stream
from backend.denoising.stream import PlainCopies, copies_to
from backend.errors import LensError, OutOfMemoryError, UsageError
from backend.kernels import attention, graphs, pointwise, switches
from backend.kernels.attention import AttentionShape, Backend, Choices, Trial
from backend.kernels.switches import AUTO, SWITCHES
from backend.memory.machine import forecast, look_at
from backend.memory.plan import Place, make_plan
from backend.packing import fp8
from backend.types import GenerationRequest
from lens_cli.work import doctor
from tests.backend.memory.test_plan import H200, MODEL

CUDA = torch.device("cuda")
SHAPE = AttentionShape(heads=24, queries=4296, keys=4296, head_size=64, dtype=torch.bfloat16)
REQUEST = GenerationRequest(
    prompt="a", model="nano", seeds=(1,), width=256, height=256, steps=2, guidance=1.0, vram=8 * 10**9
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in SWITCHES:
        monkeypatch.delenv(switch.name, raising=False)


def test_a_value_is_read_and_a_wrong_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in SWITCHES:
        assert switch.value == AUTO and not switch.is_plain
        monkeypatch.setenv(switch.name, "")  # how a shell says "not set"
        assert switch.value == AUTO
        monkeypatch.setenv(switch.name, f" {switch.plain.upper()}")
        assert switch.is_plain
    switches.check()
    monkeypatch.setenv("LENS_STREAM", "fast")
    with pytest.raises(UsageError, match="LENS_STREAM = 'fast'") as caught:
        switches.check()
    assert caught.value.hint == "one of auto, plain, off"
    for ask in (lambda: look_at(torch.device("cpu")), lambda: forecast(REQUEST, resolve_model("nano"))):
        with pytest.raises(UsageError, match="LENS_STREAM"):  # before anything is loaded, on a CPU too
            ask()


def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(pointwise, "_obstacle", lambda device: asked.append(device))  # None: Triton works
    works = pointwise._works.__wrapped__
    assert works(CUDA) and asked == [CUDA]
    monkeypatch.setenv("LENS_KERNELS", "plain")
    assert not works(CUDA) and len(asked) == 1


def test_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Backend] = []

    def measure(device: torch.device, shape: AttentionShape, backend: Backend) -> Trial:
        asked.append(backend)
        if backend is Backend.fa4:
            return Trial(backend=backend, refused="not installed")
        return Trial(backend=backend, seconds=1.0 + len(asked), error=1e-3)

    table = Choices(torch.device("cpu"), measure=measure, machine={})
    assert set(switches.ATTENTION.others) == set(Backend)
    for name in ("math", "flash"):
        asked.clear()
        monkeypatch.setenv("LENS_ATTENTION", name)
        assert table.choose(SHAPE) == name and asked == [name]
    monkeypatch.setenv("LENS_ATTENTION", "fa4")
    with pytest.raises(LensError, match=r"LENS_ATTENTION = fa4: .*not installed"):
        table.choose(SHAPE)
    asked.clear()
    monkeypatch.setenv("LENS_ATTENTION", "torch")
    assert table.choose(SHAPE) is Backend.torch and not asked
    monkeypatch.delenv("LENS_ATTENTION")
    assert table.choose(SHAPE) is Backend.fa3 and asked == list(attention.FUSED)  # measured: the first that works


def test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(graphs, "CudaCapture", made.append)
    assert graphs.cuda_graphs(CUDA, 4) is not None and made == [CUDA]
    with_room, _ = forecast(REQUEST, resolve_model("nano"))
    monkeypatch.setenv("LENS_GRAPHS", "off")
    assert graphs.cuda_graphs(CUDA, 4) is None and len(made) == 1
    without, _ = forecast(REQUEST, resolve_model("nano"))
    assert with_room is not None and without is not None
    assert with_room.plan.graphs > 0 and without.plan.graphs == 0
    assert without.plan.peak.most < with_room.plan.peak.most  # their pool of memory is not planned for


def test_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(PlainCopies):
        def __init__(self, device: torch.device, slots: int) -> None: ...

    monkeypatch.setattr(stream, "StreamCopies", Ahead)
    assert isinstance(copies_to(CUDA, 3), Ahead) and not isinstance(copies_to(torch.device("cpu"), 3), Ahead)
    monkeypatch.setenv("LENS_STREAM", "plain")
    assert type(copies_to(CUDA, 3)) is PlainCopies
    small = replace(H200, card=4 * 10**9, card_free=4 * 10**9)
    assert make_plan(MODEL, small).place is not Place.resident
    with pytest.raises(OutOfMemoryError):
        make_plan(MODEL, replace(small, streams=False))
    planned, _ = forecast(REQUEST, resolve_model("nano"))
    assert planned is not None and planned.machine.streams
    monkeypatch.setenv("LENS_STREAM", "off")
    planned, _ = forecast(REQUEST, resolve_model("nano"))
    assert planned is not None and not planned.machine.streams


def test_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "has_fp8_units", lambda device: True)
    calls: list[str] = []

    def multiply(self: fp8.Fp8Linear, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        calls.append("units")
        return self._emulate(x, scale, dtype)

    monkeypatch.setattr(fp8.Fp8Linear, "_multiply", multiply)
    weight, x = torch.randn(16, 32), torch.randn(4, 32, dtype=torch.bfloat16)
    by_units = fp8.pack(weight)(x)
    assert calls == ["units"]
    monkeypatch.setenv("LENS_FP8", "plain")
    assert torch.equal(fp8.pack(weight)(x), by_units) and calls == ["units"]


def test_doctor_shows_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.switches() == {}
    monkeypatch.setenv("LENS_GRAPHS", "off")
    monkeypatch.setenv("LENS_FP8", "slow")
    shown = doctor.switches()
    assert list(shown) == ["LENS_GRAPHS", "LENS_FP8"] and shown["LENS_GRAPHS"].startswith("off: CUDA graphs")
    assert "one of auto, plain" in shown["LENS_FP8"]


def test_the_page_about_memory_has_a_row_for_each() -> None:
    rows = [
        line for line in Path("docs/memory.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `LENS_")
    ]
    assert [row.split("`")[1] for row in rows] == [switch.name for switch in SWITCHES]
    for switch, row in zip(SWITCHES, rows, strict=True):
        assert all(f"`{value}`" in row for value in switch.others), row
