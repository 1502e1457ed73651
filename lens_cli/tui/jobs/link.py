"""The app's link to whoever draws: it asks in threads, reads the events of the job that runs, and tells by messages.

Pictures are decoded here too, in the thread that reads them, not where the screen is drawn.
"""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import work
from textual.message import Message
from textual.widget import Widget

from backend.errors import LensError
from lens_cli.tui.jobs.progress import Jobs, Watched
from lens_cli.tui.picture.load import load, load_bytes, preview

if TYPE_CHECKING:
    from PIL import Image

    from backend.server.jobs import Job, JobEvent
    from backend.settings import Settings
    from lens_cli.tui.jobs.connection import Connect, Connection

LIST_EVERY = 1.0  # seconds between two looks at the queue of a server that others may use too
PREVIEW_EVERY = 0.25  # seconds between two previews on the screen


class Link(Widget):
    """Takes no room. `jobs` is what is known of the queue; every change of it is told."""

    DEFAULT_CSS = "Link { display: none; }"

    class Opened(Message):
        """The server answers; `models` are the names of what it has."""

        def __init__(self, models: tuple[str, ...]) -> None:
            super().__init__()
            self.models = models

    class Failed(Message):
        """Something could not be asked; `lost`: because there is no server."""

        def __init__(self, error: LensError, *, lost: bool = False) -> None:
            super().__init__()
            self.error, self.lost = error, lost

    class Changed(Message):
        """The queue is another one."""

    class Heard(Message):
        """An event of the job that runs, with the picture that it brought."""

        def __init__(self, watched: Watched, event: JobEvent, picture: Image.Image | None) -> None:
            super().__init__()
            self.watched, self.event, self.picture = watched, event, picture

    class Ended(Message):
        """A job is over, as it says itself."""

        def __init__(self, job: Job) -> None:
            super().__init__()
            self.job = job

    def __init__(self, settings: Settings, connect: Connect) -> None:
        super().__init__()
        self.jobs = Jobs()
        self.connection: Connection | None = None
        self._settings, self._connect = settings, connect
        # What was asked before there was a server: a person may press Enter at once.
        self._waiting: list[tuple[Callable[[Connection], Any], Callable[[Any], None] | None]] = []
        self._opening, self._heard, self._last_preview = False, set[str](), 0.0

    # --------------------------------------------------------------------------------------------------------- opening

    def open(self) -> None:
        """Connect, or try it again."""
        if self.connection is None and not self._opening:
            self._opening = True
            self._open()

    @work(thread=True, exclusive=True, group="open")
    def _open(self) -> None:
        try:
            connection = self._connect(self._settings)
            jobs, models = list(connection.jobs()), list(connection.models())
        except LensError as error:
            self._opening = False
            self._waiting.clear()
            self.post_message(self.Failed(error, lost=True))
            return
        names = tuple(str(model.get("id")) for model in models)
        self.app.call_from_thread(self._opened, connection, jobs, names)

    def _opened(self, connection: Connection, jobs: Sequence[Job], names: tuple[str, ...]) -> None:
        self.connection, self._opening = connection, False
        self.set_interval(LIST_EVERY, self.list)
        self.post_message(self.Opened(names))
        self._have(jobs)
        waiting, self._waiting = self._waiting, []
        for what, then in waiting:
            self._ask(connection, what, then)

    # ---------------------------------------------------------------------------------------------------------- asking

    def ask(self, what: Callable[[Connection], Any], then: Callable[[Any], None] | None = None) -> None:
        """Ask the server something in a thread; while there is none yet, as soon as it answers."""
        if self.connection is None:
            self._waiting.append((what, then))
            self.open()
        else:
            self._ask(self.connection, what, then)

    @work(thread=True, group="ask")
    def _ask(
        self, connection: Connection, what: Callable[[Connection], Any], then: Callable[[Any], None] | None
    ) -> None:
        try:
            answer = what(connection)
        except LensError as error:
            self.post_message(self.Failed(error))
            return
        if then is not None:
            self.app.call_from_thread(then, answer)

    def ask_job(self, what: Callable[[Connection], Job]) -> None:
        """Ask for something that changes a job."""
        self.ask(what, self._changed)

    def list(self) -> None:
        """Look at the whole queue."""
        if self.connection is not None:
            self._list(self.connection)

    @work(thread=True, exclusive=True, group="list")
    def _list(self, connection: Connection) -> None:
        with contextlib.suppress(LensError):  # said where a person asks for something
            jobs = list(connection.jobs())
            self.app.call_from_thread(self._have, jobs)

    def _have(self, jobs: Sequence[Job]) -> None:
        self.jobs.put(jobs)
        self._follow()

    def _changed(self, job: Job) -> None:
        self.jobs.change(job)
        self._follow()
        self.list()

    def _follow(self) -> None:
        """Read the events of the job that runs."""
        running = self.jobs.running()
        if running is not None and running.job.id not in self._heard and self.connection is not None:
            self._heard.add(running.job.id)
            self._hear(self.connection, running.job.id)
        self.post_message(self.Changed())

    # --------------------------------------------------------------------------------------------------------- hearing

    @work(thread=True, group="hear")
    def _hear(self, connection: Connection, job_id: str) -> None:
        try:
            for event in connection.events(job_id):
                if not self.is_running:
                    return
                self.app.call_from_thread(self._happened, job_id, event, self._picture(connection, job_id, event))
        except LensError as error:
            self._heard.discard(job_id)
            self.post_message(self.Failed(error))

    def _picture(self, connection: Connection, job_id: str, event: JobEvent) -> Image.Image | None:
        """The picture of an event. Runs in the thread that hears."""
        name, now = event.get("event"), time.monotonic()
        if name == "preview_made" and now - self._last_preview >= PREVIEW_EVERY:
            self._last_preview = now
            return preview(event.get("png"))
        if name != "picture_saved":
            return None
        with contextlib.suppress(LensError):
            path = event.get("path")
            if isinstance(path, str) and Path(path).is_file():
                return load(Path(path))
            return load_bytes(connection.picture(job_id, int(event.get("index", 0))))  # of another machine
        return None

    def _happened(self, job_id: str, event: JobEvent, picture: Image.Image | None) -> None:
        from backend.server.jobs import job_from

        if event.get("event") == "job_changed":
            job = job_from(event.get("state"), "the server")
            self.jobs.change(job)
            if job.state.ended:
                self.post_message(self.Ended(job))
                self.list()
        watched = self.jobs.known.get(job_id)
        if watched is not None:
            watched.hear(event)
            if picture is not None and event.get("event") == "picture_saved":
                watched.keep(picture)
            self.post_message(self.Heard(watched, event, picture))
        self.post_message(self.Changed())
