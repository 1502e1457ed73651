"""An engine that stays warm: what it loads for each request, what it keeps, and that no picture can tell.

Why it can be trusted: the yardstick is an engine that has drawn nothing before, in the same process; that two fresh
processes agree is tested in `tests/backend/text/test_embeddings.py`. What is in memory is counted by weak references to
the networks themselves, and by the process's resident set.
"""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backend import engine as product
from backend import loading
from backend.cache.store import MB, Store, Stores
from backend.checkpoints.resolve import resolve_model
from backend.checkpoints.write_safetensors import write_vae
from backend.engine import Engine
from backend.events import Event, PhaseDone, PhaseStarted
from backend.memory.exhausted import trim_host
from backend.memory.plan import MemoryPlan
from backend.requests import ResolvedRequest
from backend.text import llama
from backend.types import DType, Encoder, GenerationRequest, LoraMode, LoraUse, Phase, Quant
from tests.backend.tiny_weights import VAE, random_vae, write_runnable

NANO_DIM = resolve_model("nano").preset.params.dit.dim


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResolvedRequest]:
    """Lens-Nano and a tiny model as it is stored; requests for them to be changed."""
    tiny = write_runnable(tmp_path_factory.mktemp("model") / "tiny")
    return {"nano": wish("nano", 64), "tiny": wish(str(tiny), 48)}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> LoraUse:
    """A LoRA that Lens-Nano feels in one attention layer and in the modulation beside it."""
    generator, tensors = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for linear, outputs in (("attn.img_qkv", 3 * NANO_DIM), ("img_mod.1", 6 * NANO_DIM)):
        stem = f"diffusion_model.transformer_blocks.1.{linear}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(4, NANO_DIM, generator=generator) * 0.2
        tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.2
    path = tmp_path_factory.mktemp("lora") / "a.safetensors"
    save_file(tensors, path, {"rank": "4", "alpha": "4"})
    return LoraUse(path=str(path), sha256="ab" * 32, mode=LoraMode.auto)


def wish(model: str, side: int) -> ResolvedRequest:
    files = resolve_model(model)
    request = GenerationRequest(
        prompt="a red circle", model=model, seeds=(5,), width=side, height=side, steps=2, guidance=1.0, device="cpu"
    )
    return ResolvedRequest(request=request, preset=files.preset, files=files)


def changed(resolved: ResolvedRequest, **change: Any) -> ResolvedRequest:
    return replace(resolved, request=replace(resolved.request, **change))


def drawn(engine: Engine, resolved: ResolvedRequest, events: list[Event] | None = None) -> list[bytes]:
    told: list[Event] = [] if events is None else events
    return [made.image.tobytes() for made in engine.draw(resolved, on_event=told.append)]


def fresh(resolved: ResolvedRequest) -> list[bytes]:
    with Engine() as engine:
        return drawn(engine, resolved)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[nn.Module]:
    """Every transformer and VAE that was loaded and not let go."""
    seen = weakref.WeakSet[nn.Module]()

    def watched(name: str) -> None:
        load: Any = getattr(loading, name)

        def spied(*args: Any, **kwargs: Any) -> nn.Module:
            network = load(*args, **kwargs)
            seen.add(network)
            return network

        monkeypatch.setattr(loading, name, spied)

    watched("load_for_schedules")
    watched("fill_vae")
    return seen


# ------------------------------------------------------------------------------------------------------- many requests


def test_fifty_mixed_requests(
    models: dict[str, ResolvedRequest], lora: LoraUse, alive: weakref.WeakSet[nn.Module]
) -> None:
    """Sizes, steps, seeds, prompts, guidance, LoRAs, packings, dtypes and two models in any order: the pixels of fresh
    engines, and the memory of one model.

    The bound: whatever was drawn in between, the process is as large after a request as it was after the first of its
    kind, to 8 MB, a tenth of what one forgotten network of Lens-Nano takes (62 MB in float32 without its modulation).
    Measured: 0.3 MB. What the C library keeps of freed memory is given back first.
    """
    nano, tiny = models["nano"], models["tiny"]
    kinds = [
        changed(nano, seeds=(5, 6), steps=1),
        changed(nano, width=80, steps=1, prompt="two blue fish"),
        changed(nano, loras=(lora,), steps=1),
        changed(nano, quant=Quant.int8, guidance=3.0, negative_prompt="blue", steps=1),
        tiny, changed(tiny, height=64), changed(tiny, guidance=2.0), changed(tiny, steps=3),
        changed(tiny, seeds=(9, 5)), changed(tiny, dtype=DType.bfloat16), changed(tiny, prompt="two blue fish"),
        changed(tiny, quant=Quant.int8), changed(tiny, guidance=4.0, negative_prompt="blue", width=64, steps=1),
    ]  # fmt: skip
    wanted = [fresh(kind) for kind in kinds]
    assert len({picture for pictures in wanted for picture in pictures}) >= len(kinds)
    rng = random.Random(3)
    order = list(range(len(kinds)))
    while len(order) < 50:  # each model for a while, as people ask
        some = range(4) if rng.random() < 0.2 else range(4, len(kinds))
        order += [rng.choice(some) for _ in range(rng.randrange(2, 6))]
    levels: dict[int, list[int]] = {}
    with Engine() as engine:
        for number, index in enumerate(order[:50]):
            assert drawn(engine, kinds[index]) == wanted[index], (number, index)
            assert len(alive) == 2, "one transformer and one VAE"
            trim_host()
            levels.setdefault(index, []).append(psutil.Process().memory_info().rss)
    if sys.platform == "linux":
        grown = max(max(level) - level[0] for level in levels.values())
        assert grown < 8e6


def test_unload_gives_everything_back(models: dict[str, ResolvedRequest], alive: weakref.WeakSet[nn.Module]) -> None:
    engine = Engine()
    first = drawn(engine, models["tiny"])
    assert len(alive) == 2 and engine.autoencoder in alive
    engine.unload()
    gc.collect()
    assert len(alive) == 0 and engine.autoencoder is None
    engine.unload()  # twice is once
    assert drawn(engine, models["tiny"]) == first


def test_an_abandoned_request_leaves_a_usable_engine(models: dict[str, ResolvedRequest]) -> None:
    resolved = changed(models["tiny"], seeds=(5, 9))
    with Engine() as engine:
        half = engine.draw(resolved, on_event=lambda event: None)
        assert next(half).image.tobytes() == fresh(resolved)[0]
        half.close()
        assert drawn(engine, resolved) == fresh(resolved)


# ------------------------------------------------------------------------------------------------------- what is loaded


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each part was read or computed."""
    seen = Counter[str]()

    def counted(owner: Any, name: str, what: str) -> None:
        function: Any = getattr(owner, name)

        def spied(*args: Any, **kwargs: Any) -> Any:
            seen[what] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, spied)

    counted(loading, "load_for_schedules", "transformer")
    counted(loading, "fill_vae", "vae")
    counted(product, "read_or_fold", "schedule")
    counted(product.FileLoader, "encode", "text")
    return seen


def test_only_what_differs_is_loaded(models: dict[str, ResolvedRequest], lora: LoraUse, loads: Counter[str]) -> None:
    nano = changed(models["nano"], steps=1)
    cases: list[tuple[str, ResolvedRequest, set[str]]] = [
        ("the first", nano, {"text", "transformer", "schedule", "vae"}),
        ("a seed", changed(nano, seeds=(8,)), set()),
        ("a prompt", changed(nano, prompt="a blue fish"), {"text"}),
        ("steps", changed(nano, prompt="a blue fish", steps=2), {"schedule"}),
        ("a size", changed(nano, prompt="a blue fish", steps=2, width=80), {"schedule"}),
        ("steps and size as before", changed(nano, prompt="a blue fish"), set()),
        ("a LoRA", changed(nano, prompt="a blue fish", loras=(lora,)), {"transformer", "schedule"}),
        ("a packing", changed(nano, prompt="a blue fish", quant=Quant.int8), {"transformer", "schedule"}),
        ("another packing", changed(nano, prompt="a blue fish", quant=Quant.fp8), {"transformer"}),
        ("a profile", changed(nano, prompt="a blue fish", quant=Quant.fp8, profile="cpu"), set()),
        ("guidance", changed(nano, prompt="a blue fish", quant=Quant.fp8, guidance=2.0), {"text"}),
        ("a dtype", changed(nano, dtype=DType.bfloat16), {"text", "transformer", "schedule", "vae"}),
        ("a model", changed(models["tiny"], steps=1), {"text", "transformer", "schedule", "vae"}),
    ]
    with Engine() as engine:
        for what, resolved, wanted in cases:
            loads.clear()
            drawn(engine, resolved)
            assert set(loads) == wanted, what
            assert set(loads.values()) <= {1}, what


def test_phases_of_a_warm_request(models: dict[str, ResolvedRequest]) -> None:
    """Nothing is reported that does not happen, and the picture's seconds hold no load."""
    with Engine() as engine:
        drawn(engine, models["tiny"])
        events: list[Event] = []
        (made,) = engine.draw(models["tiny"], on_event=events.append)
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == ["encode", "denoise", "decode"]
    assert set(made.timings) == {"encode", "denoise", "decode"}


def test_weights_replaced_on_the_disk_are_another_model(tmp_path: Path, loads: Counter[str]) -> None:
    """Training and exporting again leaves the model's path as it was."""
    folder = write_runnable(tmp_path / "tiny")
    resolved = wish(str(folder), 48)
    with Engine() as engine:
        before = drawn(engine, resolved)
        loads.clear()
        (folder / "vae.safetensors").unlink()  # as a new file: the old one may still be mapped
        write_vae(folder / "vae.safetensors", random_vae(seed=9), VAE, dtype=torch.float32)
        after = drawn(engine, resolved)
    assert set(loads) == {"vae"} and before != after == fresh(resolved)


def test_features_of_the_last_prompt_say_what_was_not_read(models: dict[str, ResolvedRequest]) -> None:
    """A remark about a prompt belongs to each request for it, computed or not."""
    resolved = changed(models["tiny"], prompt=" ".join(f"w{number}" for number in range(700)), steps=1)
    with Engine() as engine:
        told: list[list[Event]] = [[], []]
        for events in told:
            drawn(engine, resolved, events)
    first, second = ([str(event) for event in events if "is longer than" in str(event)] for events in told)
    assert len(first) == 1 and first == second


# --------------------------------------------------------------------------------------------------------------- memory


def test_networks_make_room_for_an_encoder_that_does_not_fit_beside_them(
    models: dict[str, ResolvedRequest], monkeypatch: pytest.MonkeyPatch, alive: weakref.WeakSet[nn.Module],
    tmp_path: Path,
) -> None:  # fmt: skip
    """They go only where something has to be encoded."""
    monkeypatch.setattr(product, "encodes_beside", lambda model, plan, resident: False)
    store = Store(tmp_path / "embeds", ".safetensors", 10 * MB, pytest.fail)
    there: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, PhaseDone) and event.phase is Phase.encode:
            gc.collect()
            there.append(len(alive))

    with Engine(stores=Stores(embeddings=store)) as engine:
        for prompt in ("a red circle", "a blue fish", "a red circle"):  # the last is known from the disk
            resolved = changed(models["tiny"], prompt=prompt)
            pictures = [made.image.tobytes() for made in engine.draw(resolved, on_event=listen)]
            assert pictures == fresh(resolved)
    assert there == [0, 0, 2]


def test_memory_of_our_own_does_not_make_the_plan_leaner(
    models: dict[str, ResolvedRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the networks take could be given back, so a plan counts it as free."""
    free: list[int] = []
    plan = product.FileLoader.plan

    def noted(self: Any, request: GenerationRequest, machine: Any) -> Any:
        free.append(machine.host_free)
        return plan(self, request, machine)

    monkeypatch.setattr(product.FileLoader, "plan", noted)
    monkeypatch.setattr("backend.memory.machine.host_free", lambda: 8 * 10**9)
    with Engine() as engine:
        (first,) = engine.draw(models["nano"], on_event=lambda event: None)
        drawn(engine, models["nano"])
        engine.unload()
        drawn(engine, models["nano"])
    assert first.plan is not None
    weights = free[1] - free[0]
    assert free[0] == free[2] == 8 * 10**9
    # The transformer in float32 without its modulation (24.0 million parameters less a third), and the VAE's 1.7.
    assert 4 * 17.0e6 < weights < 4 * 19.0e6


def test_what_has_failed_once_is_not_tried_again(
    models: dict[str, ResolvedRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server would fail, step down and load twice for every picture."""
    asked: list[Phase] = []

    def step_down(model: Any, machine: Any, plan: MemoryPlan, phase: Phase, *, on_host: bool) -> MemoryPlan:
        asked.append(phase)
        return replace(plan, peak=replace(plan.peak, decode=plan.peak.decode // 2), profile="leaner")

    def full(*_: object, **__: object) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(product, "step_down", step_down)
    with Engine() as engine:
        with monkeypatch.context() as once:
            decode: Any = product.pipeline.decode
            once.setattr(product.pipeline, "decode", full)
            events: list[Event] = []
            with pytest.raises(Exception, match="not enough memory"):
                drawn(engine, models["tiny"], events)
        assert asked == [Phase.decode] and decode is product.pipeline.decode
        (made,) = engine.draw(models["tiny"], on_event=lambda event: None)
        assert made.plan is not None and made.plan.profile == "leaner" and asked == [Phase.decode] * 2
        engine.unload()  # the machine may have changed
        (made,) = engine.draw(models["tiny"], on_event=lambda event: None)
        assert made.plan is not None and made.plan.profile == "cpu"


# ----------------------------------------------------------------------------------------------------------- llama.cpp


@pytest.fixture
def llamas(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What becomes of every model that llama.cpp opens."""
    seen: list[str] = []

    class Noted(llama.LlamaModel):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            seen.append("opened")

        def close(self) -> None:
            super().close()
            seen.append("closed")

    monkeypatch.setattr(llama, "LlamaModel", Noted)
    yield seen


@pytest.mark.parametrize("encoder", [Encoder.llama, Encoder.exact])
def test_the_engine_closes_the_language_model_it_opened(
    models: dict[str, ResolvedRequest], llamas: list[str], encoder: Encoder
) -> None:
    """What wrote a prompt reads it too, in one opening; where torch reads it, it is closed before anything loads.
    Either way once, before the transformer comes."""
    resolved = changed(models["tiny"], encoder=encoder, steps=1)

    def listen(event: Event) -> None:
        if isinstance(event, PhaseStarted):
            llamas.append(str(event.phase))

    with Engine() as engine:
        gguf = resolved.need_files().text_encoder[0]
        writer = engine.language_model(gguf, 2048)
        assert engine.language_model(gguf, 1000) is writer
        for _ in engine.draw(resolved, on_event=listen):
            pass
        early, late = (["closed"], []) if encoder is Encoder.exact else ([], ["closed"])
        assert llamas[:-2] == [
            "opened", *early, "load encoder", "encode", *late, "load transformer", "fold", "load vae"
        ]  # fmt: skip
        llamas.clear()
        assert engine.language_model(gguf, 2048) is not writer
    assert llamas == ["opened", "closed"]
