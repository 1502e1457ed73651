"""Events of an engine -> what a person (a bar, or a line per phase) or a program (NDJSON) sees while waiting."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from backend.errors import human_bytes
from backend.events import (
    DrawingStarted,
    Event,
    Noticed,
    OnEvent,
    PhaseDone,
    PhaseStarted,
    PlanMade,
    PreviewMade,
    Severity,
    StepDone,
)
from backend.types import Phase
from lens_cli.terminal.console import Talk, talking_to_a_terminal
from lens_cli.terminal.show import small_picture

if TYPE_CHECKING:
    from rich.progress import TaskID

    from backend.memory.plan import MemoryPlan
    from lens_cli.terminal.picture_bar import PictureBar

PhaseEvent = PhaseStarted | StepDone | PhaseDone
PARTS = (Phase.fold, Phase.load_vae)  # told within "load transformer", which is enough for a person
STARTING = 0.5  # seconds before the first phase (torch is imported then) from which on a line tells of them
EVENT_INTERVAL = 0.1  # seconds between two "step" lines of --json-stream; the last step is never held back


@dataclass
class Meter(AbstractContextManager["Meter"]):
    """Listens to one run. `total` is the number of pictures."""

    talk: Talk
    total: int
    steps: int = 0  # sampler steps done
    step_seconds: float = 0.0  # their wall time together
    peak_bytes: int = 0
    plan: MemoryPlan | None = None  # the last one made
    noticed: set[str] = field(default_factory=set[str])  # said once a run, though each picture that fails begins anew
    _show: Callable[[PhaseEvent, str], None] = field(init=False)
    _bar: PictureBar | None = field(init=False, default=None)
    _task: TaskID | None = field(init=False, default=None)
    _begun: float | None = field(init=False, default=None)  # time.monotonic() of a start whose first phase is to come
    _last_event: float = field(init=False, default=0.0)  # time.monotonic() of the last "step" line

    def __post_init__(self) -> None:
        if self.talk.stream:
            self._show = self._emit
        elif self.talk.quiet:
            self._show = lambda event, name: None
        elif talking_to_a_terminal():
            self._show = self._draw
        else:
            self._show = self._write

    def __enter__(self) -> Meter:
        if self._show == self._draw:
            self._bar = _make_bar(self.talk)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Clear the bar, so that other lines can be written; the next phase draws it again."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, DrawingStarted):
            self._start()
            return
        if isinstance(event, PlanMade):
            self._tell(event)
            return
        if isinstance(event, Noticed):
            self._remark(event)
            return
        if isinstance(event, PreviewMade):
            self._preview(event)
            return
        if not isinstance(event, PhaseEvent) or event.phase in PARTS:
            return
        if isinstance(event, StepDone):
            self.steps += 1
            self.step_seconds += event.seconds
        elif isinstance(event, PhaseDone):
            self.peak_bytes = max(self.peak_bytes, event.peak_bytes)
        else:
            self._end_start()
        image = event.image
        name = str(event.phase)
        if image is not None and self.total > 1:
            name += f" {image + 1}/{self.total}"
        self._show(event, name)

    def _start(self) -> None:
        """Nothing is loaded yet: a bar says so, as importing torch takes seconds."""
        self._begun = time.monotonic()
        if self._bar is not None:
            for task in list(self._bar.task_ids):
                self._bar.remove_task(task)
            self._bar.add_task("starting", total=None, note="")
            self._bar.start()

    def _end_start(self) -> None:
        seconds, self._begun = time.monotonic() - (self._begun or time.monotonic()), None
        if self._show == self._write and seconds >= STARTING:
            self.talk.say(f"starting: {seconds:.2f} s")

    def _preview(self, event: PreviewMade) -> None:
        """The picture above the bar, or as bytes of a PNG for a program."""
        if self._bar is not None:
            self._bar.show(small_picture(event.picture, self._bar.console))
        elif self.talk.stream:
            data = io.BytesIO()
            event.picture.save(data, "PNG")
            png = base64.b64encode(data.getvalue()).decode()
            self.talk.event("preview", image=event.image, step=event.step, total=event.total, png=png)

    def _remark(self, event: Noticed) -> None:
        if event.severity is Severity.detail:
            self.talk.detail(event.text)
        elif event.severity is Severity.note:
            self.pause()
            self.talk.say(f"note: {event.text}")
        elif event.text not in self.noticed:
            self.noticed.add(event.text)
            self.pause()
            self.talk.warn(event.text)

    def _tell(self, event: PlanMade) -> None:
        """A plan in one line; said once for a run of several pictures, unless it changes."""
        self.pause()
        if self.talk.stream:
            self.talk.event("plan", reason=event.reason, **event.plan.data())
        elif event.reason is not None:
            self.talk.warn(f"{event.reason}; going on with another plan: {event.plan.line()}")
        elif self.plan is None or self.plan.line() != event.plan.line():
            self.talk.say(f"plan: {event.plan.line()}")
        self.plan = event.plan

    def summary(self, pictures: int, seconds: float) -> str:
        """`2 pictures in 6.1 s, 3.4 it/s, peak memory 812 MB`."""
        parts = [f"{pictures} picture{'' if pictures == 1 else 's'} in {seconds:.1f} s"]
        if self.steps:
            parts.append(_rate(self.steps, self.step_seconds))
        if self.peak_bytes:
            parts.append(f"peak memory {human_bytes(self.peak_bytes)}")
        return ", ".join(parts)

    def _draw(self, event: PhaseEvent, name: str) -> None:
        assert self._bar is not None
        if isinstance(event, PhaseStarted):
            self._bar.show(None)
            for task in list(self._bar.task_ids):
                self._bar.remove_task(task)
            self._task = self._bar.add_task(name, total=event.total, note="")
            self._bar.start()  # pause() may have stopped it
        elif self._task is not None and isinstance(event, StepDone):
            note = f"{1 / max(event.seconds, 1e-9):.2f} it/s"
            self._bar.update(self._task, completed=event.step, total=event.total, note=note)

    def _write(self, event: PhaseEvent, name: str) -> None:
        """One line per finished phase: logs and pipes keep no bar."""
        if isinstance(event, PhaseDone):
            rate = f", {_rate(self.steps, self.step_seconds)}" if event.phase is Phase.denoise and self.steps else ""
            self.talk.say(f"{name}: {event.seconds:.2f} s{rate}, peak memory {human_bytes(event.peak_bytes)}")

    def _emit(self, event: PhaseEvent, name: str) -> None:
        image = event.image
        if isinstance(event, PhaseStarted):
            self.talk.event("phase_started", phase=event.phase, total=event.total, image=image)
        elif isinstance(event, PhaseDone):
            self.talk.event(
                "phase_done", phase=event.phase, seconds=event.seconds, peak_bytes=event.peak_bytes, image=image
            )
        elif event.step == event.total or time.monotonic() - self._last_event >= EVENT_INTERVAL:
            self._last_event = time.monotonic()
            self.talk.event(
                "step", phase=event.phase, step=event.step, total=event.total, image=image, seconds=event.seconds
            )


def say_remarks(talk: Talk) -> OnEvent:
    """Say what is noticed while many things are made, and nothing about each of them."""
    meter = Meter(talk=talk, total=1)

    def listen(event: Event) -> None:
        if isinstance(event, Noticed):
            meter(event)

    return listen


def _rate(steps: int, seconds: float) -> str:
    return f"{steps / max(seconds, 1e-9):.2f} it/s"


def _make_bar(talk: Talk) -> PictureBar:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from lens_cli.terminal.picture_bar import PictureBar

    class Left(ProgressColumn):
        """Steps and the time that is left, where there are steps: loading has none."""

        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text("")
            remaining = "" if not task.time_remaining else f"  {task.time_remaining:.0f} s left"
            return Text(f"{task.completed:.0f}/{task.total:.0f}{remaining}")

    return PictureBar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        Left(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=talk.screen(),
        transient=True,
    )
