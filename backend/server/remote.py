"""A session whose pictures a server draws: the same calls, the same events, the same outcome as `backend.session`.

Light ring: Pillow arrives with a picture.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from backend.disk import check_folder, make_folder, write_new
from backend.errors import CancelledError, RefusedError
from backend.events import (
    DrawingStarted,
    Noticed,
    OnEvent,
    PictureFailed,
    PlanMade,
    PromptRefused,
    PromptRewritten,
    Severity,
    Stop,
)
from backend.fields import object_from
from backend.paths import history_file
from backend.picture.ledger import Ledger
from backend.picture.outcome import Outcome
from backend.picture.outputs import OutputPlan
from backend.requests import ResolvedRequest
from backend.server.client import Client
from backend.server.jobs import Job, JobState, error_from, job_from
from backend.server.wire import event_from, saved_from
from backend.session import Session
from backend.settings import Settings
from backend.types import Expander, ReasonerMode
from backend.wishes.command_words import wish_of

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles
    from backend.reasoner.refine import Decision, RewritePlan

POLL = 0.1  # seconds between two looks at `stop`


class RemoteSession:
    """Has one request after another drawn by a server. One of this home writes the files itself; a server on another
    machine sends them."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self.settings, self.client = settings, client
        self._ours = client.place.pid is not None
        self._ledger = Ledger(history_file())

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ledger.close()

    def run(
        self, resolved: ResolvedRequest, output: OutputPlan, *, rewrite: RewritePlan | None = None,
        parent_id: str | None = None, relation: str | None = None, on_event: OnEvent, stop: Stop = lambda: False,
    ) -> Outcome:  # fmt: skip
        """As `Session.run`; NetworkError too, where the server goes away for good: the job is kept there."""
        if rewrite is not None and rewrite.mode is ReasonerMode.api:  # this person's endpoint and key, not the server's
            with Session(self.settings) as here:
                resolved = here.rewritten(resolved, rewrite, on_event, stop)
            rewrite = None
        if rewrite is not None and rewrite.mode is ReasonerMode.off:
            rewrite = None
        now = datetime.now()
        if output.template is not None:
            for folder in sorted(output.folders(resolved.request, now)):
                check_folder(folder)
        work = _Work(self, resolved, output, now, relation, on_event)
        wish = replace(wish_of(resolved.request), reasoner=ReasonerMode.off if rewrite is None else None)
        job = self.client.submit(
            wish, _there(output) if self._ours else replace(output, template=None),
            rewrite=None if rewrite is None else asdict(rewrite), parent_id=parent_id, relation=relation,
        )  # fmt: skip
        try:
            for event in self._events(job, stop):
                work.hear(event)
        except BaseException:
            # Ctrl-C twice, or nobody to write for: what is drawn has nowhere to go. Twice is at once.
            for _ in range(2):
                self.client.cancel(job.id)
            raise
        return work.outcome

    def rewrite(
        self, request: str, plan: RewritePlan, files: ModelFiles | None, *, on_event: OnEvent,
        stop: Stop = lambda: False,
    ) -> Decision:  # fmt: skip
        """As `Session.rewrite`, by the model that the server has in memory."""
        if plan.mode is not ReasonerMode.local:  # an endpoint of this person's own
            with Session(self.settings) as here:
                return here.rewrite(request, plan, files, on_event=on_event, stop=stop)
        from backend.reasoner.refine import Refused, Rewritten

        try:
            told = self.client.refine(request, asdict(plan))
        except RefusedError as error:
            if error.rule is None:
                raise
            on_event(PromptRefused(rule=error.rule, original=request, expander=plan.expander(), cached=False))
            return Refused(rule=error.rule, original=request, expander=plan.expander(), cached=False)
        expander, cached = object_from(told["expander"], Expander), bool(told["cached"])
        on_event(PromptRewritten(prompt=told["prompt"], original=request, expander=expander, cached=cached))
        return Rewritten(prompt=told["prompt"], original=request, expander=expander, cached=cached)

    def _events(self, job: Job, stop: Stop) -> Iterator[dict[str, Any]]:
        """The job's events, read in a thread, so that `stop` is looked at meanwhile."""
        heard = queue.SimpleQueue[dict[str, Any] | Exception | None]()

        def read() -> None:
            try:
                for event in self.client.events(job.id):
                    heard.put(event)
                heard.put(None)
            except Exception as error:  # noqa: BLE001  raised where it is heard
                heard.put(error)

        threading.Thread(target=read, daemon=True).start()
        stopped = False
        while True:
            if stop() and not stopped:
                stopped = True
                self.client.cancel(job.id)
            try:
                event = heard.get(timeout=POLL)
            except queue.Empty:
                continue
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event

    def file_of(self, job: str, event: dict[str, Any]) -> bytes | None:
        """The bytes of a picture that has no file here yet; None: it has one."""
        return None if event["path"] is not None else self.client.picture(job, int(event["index"]))

    def enter(self, record: dict[str, Any], path: Path | None, relation: str | None, on_event: OnEvent) -> None:
        """A picture that the server did not enter into this person's history."""
        self._ledger.enter(record, path, relation, lambda text: on_event(Noticed(text=text)))


Draws = Session | RemoteSession  # what a command asks for pictures


class _Work:
    """One request while it is drawn elsewhere."""

    def __init__(
        self, session: RemoteSession, resolved: ResolvedRequest, output: OutputPlan, now: datetime,
        relation: str | None, on_event: OnEvent,
    ) -> None:  # fmt: skip
        self._session, self._output, self._now, self._relation = session, output, now, relation
        self._on_event = on_event
        self._began = False
        self.outcome = Outcome(resolved=resolved)

    def hear(self, data: dict[str, Any]) -> None:
        """Raises what `Session.run` raises."""
        if data["event"] == "job_changed":
            self._change(job_from(data["state"], "the server"))
            return
        if data["event"] == "picture_saved":
            self._save(data)
            return
        event = event_from(data)
        if isinstance(event, DrawingStarted):
            self._began = True
            self.outcome.resolved = replace(self.outcome.resolved, request=event.request)
        elif isinstance(event, PlanMade):
            self.outcome.plan = event.plan
        elif isinstance(event, PictureFailed):
            self.outcome.failures.append(event)
        if event is not None:
            self._on_event(event)

    def _change(self, job: Job) -> None:
        if job.state is JobState.queued and job.position:
            ahead = f"{job.position} job{'' if job.position == 1 else 's'} before this one"
            self._on_event(Noticed(text=ahead, severity=Severity.note))
        if job.state is JobState.cancelled:
            self.outcome.stopped = CancelledError("stopped")
        elif job.state is JobState.failed and job.failures < job.total:
            error = error_from(job.error)
            if not self._began:
                raise error
            self.outcome.stopped = error

    def _save(self, data: dict[str, Any]) -> None:
        """The picture as an event of ours; here it gets its file where the server has none of it."""
        request, index = self.outcome.resolved.request, int(data["index"])
        file = self._session.file_of(data["job"], data)
        path = None if file is not None else self._shown(Path(data["path"]))
        if file is not None and self._output.template is not None:
            wished = self._output.path(request, index, self._now)
            make_folder(wished.parent)
            path = write_new(wished, file)
        saved = saved_from(data, request, path, file if path is None else None)
        if path is None:
            self._on_event(saved)
        self.outcome.pictures.append(saved)
        if file is not None and self._output.history:
            self._session.enter(dict(saved.record), path, self._relation, self._on_event)
        if path is not None:
            self._on_event(saved)

    def _shown(self, path: Path) -> Path:
        """As a run in this process would name it: relative where it was asked for so."""
        template = Path(str(self._output.template))
        return path if template.is_absolute() or not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())


def _there(output: OutputPlan) -> OutputPlan:
    """The plan for a process in another folder."""
    if output.template is None or Path(output.template).is_absolute():
        return output
    here = str(Path.cwd()).replace("{", "{{").replace("}", "}}")
    return replace(output, template=f"{here}/{output.template}")
