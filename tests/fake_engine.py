"""A hand-made stand-in for `backend.engine`, so that session and command line are tested in milliseconds and without
torch.

It keeps the interface's promises: pictures in order, events, a poll of `stop` after every step, pixels that depend on
prompt, seed, size, steps and guidance only, but for what a mask keeps, which is put back as it was. Its weakness: it
proves nothing about the real engine, which has tests of its own; `tests/lens_cli/test_nano.py` drives the two together.

As a program (`python tests/fake_engine.py gen …`) it is `lens` with the fake inside. Words in the prompt misbehave:
"nan" fails the picture whose seed is odd, "oom" fails everything, "slow" sleeps 50 ms a step, "hang" ignores stop,
"broken" raises what nobody expects.
"""

from __future__ import annotations

import hashlib
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backend import presets
from backend.errors import CancelledError, NumericsError, OutOfMemoryError
from backend.events import Generation, OnEvent, PhaseDone, PhaseStarted, PreviewMade, StepDone, Stop
from backend.inputs.begin import last_pass
from backend.inputs.canvas import open_canvas
from backend.presets import Preset
from backend.requests import ResolvedRequest
from backend.types import DType, Encoder, GenerationRequest, LoraMode, ModelIdentity, Phase, Preview

WEIGHTS = Path(__file__)  # stands for a weights file: it exists, and its SHA-256 can be told


@dataclass(frozen=True, kw_only=True)
class FakeFiles:
    """As much of `backend.checkpoints.resolve.ModelFiles` as the command line reads."""

    name: str
    preset: Preset
    transformer: tuple[Path, ...] = ()
    text_encoder: tuple[Path, ...] = ()
    revision: str | None = None
    notes: tuple[str, ...] = ()
    total_bytes: int = 12_345_678
    folder: Path = Path("a model that does not say what it knows")
    adapters: tuple[Any, ...] = ()

    @property
    def adjustable(self) -> bool:
        return any(own.adjustable for own in self.preset.adapters)

    def with_strength(self, strength: float) -> FakeFiles:
        return self

    def files(self) -> list[tuple[str, Path, int]]:
        return [("transformer", WEIGHTS, self.total_bytes)]


def resolve_model(name: str) -> FakeFiles:
    return FakeFiles(name=name, preset=presets.get(name))


class Engine:
    def __init__(self, *, stores: object = None) -> None:
        self.stores, self.unloaded = stores, 0

    def unload(self) -> None:
        self.unloaded += 1

    def draw(self, resolved: ResolvedRequest, *, first: int = 0, on_event: OnEvent, stop: Stop) -> Iterator[Generation]:
        from PIL import Image

        request, files = resolved.request, resolved.need_files()
        finished = last_pass(request)
        if "oom" in request.prompt.split():  # a mushroom is none
            raise OutOfMemoryError("not enough memory", hint="make a smaller picture")
        if "broken" in request.prompt:
            raise RuntimeError("the fake is broken\n[red]on two lines[/red]")
        for phase in (Phase.load_encoder, Phase.encode, Phase.load_transformer):
            on_event(PhaseStarted(phase=phase))
            on_event(PhaseDone(phase=phase, seconds=0.001, peak_bytes=1_000_000))
        for index, seed in list(enumerate(request.seeds))[first:]:
            on_event(PhaseStarted(phase=Phase.denoise, total=request.steps, image=index))
            for step in range(1, request.steps + 1):
                time.sleep(0.05 if "slow" in request.prompt or "hang" in request.prompt else 0)
                on_event(StepDone(phase=Phase.denoise, step=step, total=request.steps, image=index, seconds=0.001))
                if request.preview is not Preview.off and step < request.steps:
                    shade = Image.new("RGB", (request.width // 4, request.height // 4), (seed % 256, 255 // step, 90))
                    on_event(PreviewMade(image=index, step=step, total=request.steps, picture=shade))
                if stop() and "hang" not in request.prompt:
                    raise CancelledError("stopped")
            on_event(PhaseDone(phase=Phase.denoise, seconds=0.02, peak_bytes=2_000_000, image=index))
            if "nan" in request.prompt and seed % 2:
                raise NumericsError("the latent is not finite", hint="try --dtype float32")
            on_event(PhaseStarted(phase=Phase.decode, image=index))
            on_event(PhaseDone(phase=Phase.decode, seconds=0.001, peak_bytes=2_000_000, image=index))
            image = Image.frombytes("RGB", (finished.width, finished.height), _pixels(finished, seed))
            yield Generation(
                image=image if finished.init is None else open_canvas(finished).restore(image),
                request=request,
                index=index,
                seed=seed,
                model=ModelIdentity(
                    name=files.name, sha256={"transformer": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}
                ),
                sigmas=tuple(1 - step / request.steps for step in range(request.steps + 1)),
                dtype="float32" if request.dtype is DType.auto else str(request.dtype),
                device="cpu",
                loras=tuple(replace(use, mode=LoraMode.fused) for use in request.loras),
                encoder=Encoder.exact if request.encoder is Encoder.auto else request.encoder,
                template_date="2026-05-26",
                timings={"denoise": 0.02},
                versions={"torch": "0.0-fake"},
            )


def _pixels(request: GenerationRequest, seed: int) -> bytes:
    loras = "".join(f"|{use.sha256} {use.scale}" for use in request.loras if use.scale)
    key = f"{request.prompt}|{seed}|{request.steps}|{request.guidance}{loras}".encode()
    tile = hashlib.sha256(key).digest()
    return (tile * (request.width * request.height * 3 // len(tile) + 1))[: request.width * request.height * 3]


def install() -> None:
    """Put the fake in place of the real modules, for this process."""
    from backend.checkpoints import resolve

    module = types.ModuleType("backend.engine")
    module.Engine = Engine  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["backend.engine"] = module
    resolve.resolve_model = resolve_model  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    install()
    sys.argv[0] = "lens"
    from lens_cli.entry import main

    main()
