"""A job of the server as everybody sees it: the queue, the worker, the routes and whoever asks over HTTP.

What happens to a job goes out as events: plain JSON objects with `number` (rising over all jobs, for a client that
comes back), `job` (its id), `event` (a name below) and the fields of that event.

    event             fields
    job_changed       state: the whole job, as `Job.data` gives it; the last one of a job says how it ended
    phase_started     phase, total, image
    step_done         phase, step, total, image, seconds
    phase_done        phase, seconds, peak_bytes, image
    plan_made         line, plan, reason
    noticed           text, severity
    prompt_rewritten  prompt, original, expander, cached
    prompt_refused    rule, original, expander, cached
    drawing_started   request
    preview_made      image, step, total, png: base64
    picture_saved     index, seed, path (null: fetch it), id, width, height, pixel_sha256, timings, record
    picture_failed    index, seed, code, message, hint

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, cast

from backend.errors import LensError, RefusedError, UntrustedError, UsageError
from backend.fields import Misfit, object_from

JobEvent = Mapping[str, Any]  # as above
ENDED = "done failed cancelled".split()


class UnknownJobError(UsageError):
    """A job, or a picture of one, that is not there or not any more."""

    code = "unknown_job"


class JobState(StrEnum):
    queued = "queued"
    running = "running"
    done = "done"  # every picture that could be made was; `failures` counts the others
    failed = "failed"  # no picture, or something ended it before the last one: `error`
    cancelled = "cancelled"

    @property
    def ended(self) -> bool:
        return self.value in ENDED


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job at one moment."""

    id: str
    state: JobState
    prompt: str  # as it was asked for
    model: str  # registry name or path
    total: int  # pictures that were asked for
    made: int = 0  # pictures that are whole
    failures: int = 0  # pictures that came to nothing, the next one being drawn
    position: int | None = None  # among those that wait, 0 is the next; None: it does not wait
    created: float  # Unix time, seconds; of the other two None: not yet
    started: float | None = None
    ended: float | None = None
    error: Mapping[str, Any] | None = None  # code, message, hint of what ended it
    wish: Mapping[str, Any]  # the fields that were given, as JSON

    def data(self) -> dict[str, Any]:
        """The job as JSON, which `job_from` reads back."""
        return asdict(self)


def job_from(data: object, source: str) -> Job:
    """A job as a server states it. Raises UntrustedError."""
    try:
        return object_from(data, Job)
    except (Misfit, TypeError, ValueError) as error:
        raise UntrustedError(f"{source} states a job that is none") from error


def error_data(error: LensError) -> dict[str, Any]:
    """An error as JSON: its code, what it says, what to do; of a refusal its rule, too."""
    rule = {"rule": error.rule} if isinstance(error, RefusedError) else {}
    return {"code": error.code, "message": str(error), "hint": error.hint, **rule}


def error_from(data: object) -> LensError:
    """The error that a server states, of the class with its code; of LensError where the code is unknown."""
    told = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    code, message, hint = (told.get(name) for name in ("code", "message", "hint"))
    kind = next((kind for kind in _kinds(LensError) if kind.code == code), LensError)
    text = message if isinstance(message, str) else "the server says no more than that it failed"
    error = kind(text[:2000], hint=hint[:2000] if isinstance(hint, str) else None)
    if isinstance(error, RefusedError):
        error.rule = rule if isinstance(rule := told.get("rule"), str) else None
    return error


def _kinds(kind: type[LensError]) -> list[type[LensError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _kinds(below))]
