"""The engine under other plans: the same pictures from streamed blocks, and what happens when memory runs out.

Why it can be trusted: the yardstick is the same engine with everything in memory, which `test_pipeline` holds against
a hand-written one. A GPU's plan is carried out on the CPU: the same code, with plain copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backend import engine as product
from backend import loaders
from backend.denoising.stream import StreamedBlocks
from backend.engine import Engine
from backend.errors import OutOfMemoryError
from backend.events import Event, Generation, PlanMade
from backend.memory.exhausted import host_ran_out, ran_out
from backend.memory.machine import RunPlan
from backend.memory.plan import EncoderPlace, MachineMemory, MemoryPlan, PeakBytes, Place
from backend.types import DType, Phase
from tests.backend.test_pipeline import REQUEST, make, model, resolved_for, same

__all__ = ["model"]  # a fixture

GB = 10**9
SEEDS = replace(REQUEST, seeds=(5, 9, 7), steps=1, guidance=1.0)


@pytest.fixture(scope="module")
def wanted(model: Path) -> list[Generation]:
    """The pictures of `SEEDS` with everything in memory."""
    return make(model, SEEDS)


def leaner(plan: MemoryPlan, place: Place = Place.pinned) -> MemoryPlan:
    return replace(plan, device="cuda", place=place, reader=EncoderPlace.cpu)


@pytest.mark.parametrize("place", [Place.pinned, Place.mapped])
def test_streamed_blocks_make_the_same_picture(
    model: Path, wanted: list[Generation], monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    sources: list[StreamedBlocks[Any]] = []
    stream, planned = product.stream_blocks, loaders.plan_run

    def spied(*args: Any, **kwargs: Any) -> StreamedBlocks[Any]:
        assert kwargs["packed"] is (place is Place.pinned)
        sources.append(stream(*args, **kwargs))
        return sources[0]

    def planned_for_a_card(*args: Any) -> RunPlan:
        found = planned(*args)
        return replace(found, plan=leaner(found.plan, place))

    monkeypatch.setattr(product, "stream_blocks", spied)
    monkeypatch.setattr(loaders, "plan_run", planned_for_a_card)
    streamed = make(model, SEEDS)
    assert len(sources) == 1 and not sources[0]._slots  # given back for the last decoding
    assert all(same(a, b) for a, b in zip(wanted, streamed, strict=True))
    assert streamed[0].plan is not None and streamed[0].plan.place is place


# ------------------------------------------------------------------------------------------------- memory that runs out


class Failing:
    """Wraps a function; its calls with these numbers (from 0) find no memory."""

    def __init__(self, function: Callable[..., Any], *calls: int, error: BaseException | None = None) -> None:
        self.function, self.calls, self.count = function, calls, 0
        self.error = error or torch.OutOfMemoryError("tried to allocate 2 GiB\nlong story")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count - 1 in self.calls:
            raise self.error
        return self.function(*args, **kwargs)


def drawn(model: Path, events: list[Event]) -> Iterator[Generation]:
    yield from Engine().draw(resolved_for(model, SEEDS), on_event=events.append)


FAILURES = [
    ("loading.open_text_table", (0,), 0, "load encoder"),
    ("loading.load_for_schedules", (0,), 0, "load transformer"),
    ("pipeline.denoise", (1,), 1, "denoise"),
    ("pipeline.decode", (2,), 2, "decode"),
]


def fail(monkeypatch: pytest.MonkeyPatch, name: str, *calls: int, error: BaseException | None = None) -> None:
    *owners, last = name.split(".")
    owner: Any = product
    for part in owners:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, last, Failing(getattr(owner, last), *calls, error=error))


@pytest.mark.parametrize(("where", "calls", "kept", "phase"), FAILURES, ids=[row[3] for row in FAILURES])
def test_steps_down_once_and_goes_on(
    model: Path, wanted: list[Generation], monkeypatch: pytest.MonkeyPatch, where: str, calls: tuple[int, ...],
    kept: int, phase: str,
) -> None:  # fmt: skip
    phases: list[Phase] = []

    def step_down(model: Any, machine: Any, plan: MemoryPlan, phase: Phase, *, on_host: bool) -> MemoryPlan:
        assert not on_host
        phases.append(phase)
        return leaner(plan)

    monkeypatch.setattr(product, "step_down", step_down)
    fail(monkeypatch, where, *calls)
    events: list[Event] = []
    made = list(drawn(model, events))
    assert [g.seed for g in made] == [5, 9, 7] and [g.index for g in made] == [0, 1, 2]
    assert all(same(a, b) for a, b in zip(made, wanted, strict=True))
    assert [g.plan is not None and g.plan.streamed for g in made] == [index >= kept for index in range(3)]
    first, second = [event for event in events if isinstance(event, PlanMade)]
    assert first.reason is None and second.plan == leaner(first.plan)
    assert second.reason == f"memory ran out ({phase}): tried to allocate 2 GiB"
    assert phases == [phase]


def test_a_second_failure_is_the_error_and_keeps_what_is_made(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "step_down", lambda model, machine, plan, stage, on_host: leaner(plan))
    fail(monkeypatch, "pipeline.decode", 1, 2)
    made: list[Generation] = []
    with pytest.raises(OutOfMemoryError, match="not enough memory for 48x64 with tiny: tried to allocate") as raised:
        for generation in drawn(model, []):
            made.append(generation)  # noqa: PERF402  a list() would lose what came before the error
    assert [g.seed for g in made] == [5] and raised.value.exit_code == 6
    assert "--base" in str(raised.value.hint) and "\n" not in str(raised.value)


def test_no_leaner_plan_is_the_error_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this tiny model nothing can be saved: its plans differ by kilobytes."""
    fail(monkeypatch, "pipeline.decode", 0)
    events: list[Event] = []
    with pytest.raises(OutOfMemoryError):
        list(drawn(model, events))
    assert sum(isinstance(event, PlanMade) for event in events) == 1


def test_memory_that_cannot_be_pinned_asks_for_a_plan_with_less_of_the_host(
    model: Path, wanted: list[Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Phase, bool]] = []

    def step_down(model: Any, machine: Any, plan: MemoryPlan, phase: Phase, *, on_host: bool) -> MemoryPlan:
        asked.append((phase, on_host))
        return leaner(plan, Place.mapped)

    monkeypatch.setattr(product, "step_down", step_down)
    fail(monkeypatch, "loading.load_for_schedules", 0, error=MemoryError("the system refuses to pin 5 bytes"))
    made = list(drawn(model, []))
    assert asked == [(Phase.load_transformer, True)]
    assert all(same(a, b) for a, b in zip(made, wanted, strict=True))


def test_which_errors_are_memory() -> None:
    words = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"
    host = (MemoryError(), RuntimeError(words))
    gpu = (
        torch.OutOfMemoryError("x"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    )
    assert all(map(ran_out, (*host, *gpu)))
    assert all(map(host_ran_out, host)) and not any(map(host_ran_out, gpu))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**62, dtype=torch.uint8)
    assert ran_out(real.value) and host_ran_out(real.value)
    assert not any(map(ran_out, (RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("x"))))


def test_other_errors_pass_through(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "pipeline.decode", 0, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(drawn(model, []))


# ------------------------------------------------------------------------------------------------------- which device


def on_a_card(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Believe in a card with so many bytes free."""

    def look_at(device: torch.device) -> MachineMemory:
        return MachineMemory(device=device.type, card=8 * GB, card_free=free, host_free=32 * GB)

    monkeypatch.setattr(product, "look_at", look_at)
    monkeypatch.setattr(product, "choose_device", lambda name: torch.device("cuda"))


def test_a_card_too_small_is_left_alone_unless_it_was_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, engine = replace(REQUEST, device="auto"), Engine()
    on_a_card(monkeypatch, 8 * GB)
    planned = engine.plan(resolved_for(model, request))
    assert planned.plan.device == "cuda" and planned.dtype is DType.bfloat16
    on_a_card(monkeypatch, 100_000_000)
    events: list[Event] = []
    (made,) = engine.draw(resolved_for(model, request), on_event=events.append)
    assert made.plan is not None and made.plan.device == "cpu"
    assert (made.device, made.dtype) == ("cpu", "float32")
    (told,) = [event for event in events if isinstance(event, PlanMade)]
    assert told.plan == made.plan and "even in the leanest plan; 95.0 MB can be had" in str(told.reason)
    # Once there is room again, the GPU is used again.
    on_a_card(monkeypatch, 8 * GB)
    assert engine.plan(resolved_for(model, request)).plan.device == "cuda"
    with pytest.raises(OutOfMemoryError):
        engine.plan(resolved_for(model, replace(request, vram=100_000_000)))
    on_a_card(monkeypatch, 100_000_000)
    with pytest.raises(OutOfMemoryError, match=r"of memory on the GPU even in the leanest plan; 95\.0 MB can be had"):
        engine.plan(resolved_for(model, replace(request, device="cuda")))


def test_every_phase_belongs_to_a_prediction() -> None:
    peak = PeakBytes(encode=1, denoise=2, decode=3)
    assert {phase: peak.at(phase) for phase in Phase} == {
        Phase.rewrite: 1, Phase.load_encoder: 1, Phase.encode: 1, Phase.load_transformer: 2, Phase.fold: 2,
        Phase.load_vae: 2, Phase.denoise: 2, Phase.decode: 3,
    }  # fmt: skip
