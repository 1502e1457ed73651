"""A server that draws what a test tells it to: the app's connection without a process, a model or a wait.

It keeps the promises of `backend.server.client.Client`: jobs in their order, events with rising numbers, a cancel that
a running job hears after its step. `hold` and `go` stop and start its clock, so that a test sees every moment.
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from backend.errors import LensError, UsageError
from backend.picture.outputs import OutputPlan
from backend.server.jobs import Job, JobState
from backend.wish import Wish


def gradient(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A picture that depends on its seed alone."""
    across, down = (Image.linear_gradient("L").resize(size), Image.linear_gradient("L").rotate(90).resize(size))
    return Image.merge("RGB", (across, down, Image.new("L", size, seed * 37 % 256)))


class ScriptedServer:
    """Draws one job at a time, `steps` steps each of `pause` seconds."""

    def __init__(self, folder: Path, *, steps: int = 4, pause: float = 0.0) -> None:
        self.folder, self.steps, self.pause = folder, steps, pause
        self.wishes: list[Wish] = []
        self.parents: list[tuple[str | None, str | None]] = []
        self.rewrite: str | LensError = "a fish, rewritten"
        self.names = ["nano", "lens-turbo"]
        self._jobs: dict[str, Job] = {}
        self._order: list[str] = []
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._open, self._held = threading.Event(), 1
        self._open.set()

    # ----------------------------------------------------------------------------------------------------- the test's

    def hold(self, step: int = 1) -> None:
        """Stop before a step of every picture."""
        self._held = step
        self._open.clear()

    def go(self) -> None:
        self._open.set()

    # ------------------------------------------------------------------------------------------------ the connection's

    def submit(
        self, wish: Wish, output: OutputPlan | None, *, parent_id: str | None = None, relation: str | None = None
    ) -> Job:
        if "[fail]" in (wish.prompt or ""):
            raise UsageError("this wish cannot be met", hint="wish for something else")
        with self._changed:
            self.wishes.append(wish)
            self.parents.append((parent_id, relation))
            job = Job(
                id=f"job{len(self._jobs)}", state=JobState.queued, prompt=wish.prompt or "", model=wish.model or "nano",
                total=wish.num or 1, created=0.0, wish={}, position=len(self._order),
            )  # fmt: skip
            self._jobs[job.id], self._events[job.id] = job, []
            self._order.append(job.id)
            if len(self._order) == 1:
                self._start(job.id)
            return self._jobs[job.id]

    def events(self, job_id: str, after: int = 0) -> Iterator[Mapping[str, Any]]:
        place = after
        while True:
            with self._changed:
                while len(self._events[job_id]) <= place:
                    self._changed.wait(0.05)
                event = self._events[job_id][place]
            place += 1
            yield event
            if event["event"] == "job_changed" and JobState(event["state"]["state"]).ended:
                return

    def cancel(self, job_id: str) -> Job:
        with self._changed:
            job = self._jobs[job_id]
            if job.state is JobState.queued:
                self._order.remove(job_id)
                self._change(job_id, state=JobState.cancelled, position=None)
            elif job.state is JobState.running:
                self._jobs[job_id] = replace(job, error={"code": "cancelled", "message": "stopped"})
        return self._jobs[job_id]

    def move(self, job_id: str, position: int) -> Job:
        with self._changed:
            self._order.remove(job_id)
            running = [name for name in self._order if self._jobs[name].state is JobState.running]
            self._order.insert(position + len(running), job_id)
        return self._jobs[job_id]

    def jobs(self) -> list[Job]:
        with self._changed:
            waiting = [name for name in self._order if self._jobs[name].state is JobState.queued]
            live = [replace(self._jobs[n], position=waiting.index(n) if n in waiting else None) for n in self._order]
            return live + [job for job in reversed(self._jobs.values()) if job.state.ended]

    def picture(self, job_id: str, index: int) -> bytes:
        raise NotImplementedError

    def refine(self, text: str) -> Mapping[str, Any]:
        """Answers while nothing is held: the model that rewrites is the one that draws."""
        self._open.wait()
        if isinstance(self.rewrite, LensError):
            raise self.rewrite
        expander = {"kind": "local", "model": "nano", "system_prompt": "nano", "instructions_sha256": "0",
                    "effort": "low", "temperature": 0.0, "seed": 0}  # fmt: skip
        return {"prompt": self.rewrite, "original": text, "expander": expander, "cached": False}

    def models(self) -> list[Mapping[str, Any]]:
        return [{"id": name} for name in self.names]

    # ------------------------------------------------------------------------------------------------------- drawing

    def _start(self, job_id: str) -> None:
        self._change(job_id, state=JobState.running, position=None, started=1.0)
        threading.Thread(target=self._draw, args=(job_id,), daemon=True).start()

    def _draw(self, job_id: str) -> None:
        job = self._jobs[job_id]
        try:
            for image in range(job.total):
                self._tell(job_id, event="phase_started", phase="denoise", total=self.steps, image=image)
                for step in range(1, self.steps + 1):
                    if step >= self._held:
                        self._open.wait()
                    time.sleep(self.pause)
                    if self._jobs[job_id].error is not None:
                        self._end(job_id, JobState.cancelled)
                        return
                    picture = gradient(step * 20 + image, (24, 24))
                    self._tell(
                        job_id, event="preview_made", image=image, step=step, total=self.steps, png=_png(picture)
                    )
                    self._tell(
                        job_id,
                        event="step_done",
                        phase="denoise",
                        step=step,
                        total=self.steps,
                        image=image,
                        seconds=0.5,
                    )
                if "nan" in job.prompt:
                    raise LensError("the latent is not finite", hint="try --dtype float32")
                path = self.folder / f"{job_id}-{image}.png"
                gradient(image + 3).save(path)
                with self._changed:
                    self._change(job_id, made=image + 1)
                self._tell(
                    job_id, event="picture_saved", index=image, seed=image, path=str(path), id="0" * 32, width=96,
                    height=96, pixel_sha256="0", timings={"denoise": 2.0}, record={},
                )  # fmt: skip
            self._end(job_id, JobState.done)
        except LensError as error:
            with self._changed:
                told = {"code": error.code, "message": str(error), "hint": error.hint}
                self._jobs[job_id] = replace(self._jobs[job_id], error=told)
            self._end(job_id, JobState.failed)

    def _end(self, job_id: str, state: JobState) -> None:
        with self._changed:
            self._order.remove(job_id)
            self._change(job_id, state=state, ended=3.0)
            if self._order:
                self._start(self._order[0])

    def _change(self, job_id: str, **values: Any) -> None:
        self._jobs[job_id] = replace(self._jobs[job_id], **values)
        self._tell(job_id, event="job_changed", state=self._jobs[job_id].data())

    def _tell(self, job_id: str, **event: Any) -> None:
        with self._changed:
            number = sum(len(found) for found in self._events.values()) + 1
            self._events[job_id].append({"number": number, "job": job_id, **event})
            self._changed.notify_all()


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
