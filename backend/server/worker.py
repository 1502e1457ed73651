"""The process that draws for a server: orders come in as lines of JSON, events go out.

Of its own, because a picture takes all of the interpreter and may take the process with it (no memory, a fault in
native code): the server answers meanwhile, and outlives it. It writes no picture and knows no queue. It ends when the
server does, so that its memory is given back in any case.

    {"do": "draw", "job": "ab", "request": {...}, ...}    events, {"event": "finished", "job": "ab", "error": ...}
    {"do": "refine", "job": "cd", "prompt": "...", ...}   events, finished
    {"do": "cancel", "job": "ab"}                         taken at once, while another order runs
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from backend.errors import CancelledError, LensError, OutOfMemoryError
from backend.events import Event, PictureSaved
from backend.fields import object_from
from backend.picture.outputs import SUFFIX, OutputPlan
from backend.reasoner.refine import Refused, RewritePlan
from backend.requests import ResolvedRequest, find_model
from backend.server.jobs import error_data
from backend.server.wire import event_data
from backend.session import Session
from backend.types import GenerationRequest, ImageFormat

Order = Mapping[str, Any]


def main() -> None:
    """Serve the pipe that this process was started with."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)  # Ctrl-C at the server's terminal is the server's: it tells us
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to the log, and never between two lines
    serve(sys.stdin.buffer, out, open_session)


def open_session() -> Session:
    """A session of this machine's settings."""
    from backend.settings import load

    return Session(load())


def serve(source: BinaryIO, sink: BinaryIO, open_session: Callable[[], Session]) -> None:
    """Carry out orders until the source ends. `open_session` is asked again after an error that nobody expected."""
    drawer, orders = Drawer(open_session, Sink(sink)), queue.SimpleQueue[Order]()
    threading.Thread(target=_listen, args=(source, drawer, orders), daemon=True).start()
    drawer.tell({"event": "ready", "pid": os.getpid()})
    while True:
        drawer.carry_out(orders.get())


def _listen(source: BinaryIO, drawer: Drawer, orders: queue.SimpleQueue[Order]) -> None:
    for line in source:
        order = json.loads(line)
        if order["do"] == "cancel":
            drawer.cancelled.add(order["job"])
        else:
            orders.put(order)
    os._exit(0)  # the server is gone: nobody would take what is drawn


class Sink:
    """One line an event, from any thread."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._lock = file, threading.Lock()

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


class Drawer:
    """Carries out orders with one session, which keeps its model between them."""

    def __init__(self, open_session: Callable[[], Session], tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._open, self.tell = open_session, tell
        self._session: Session | None = None
        self.cancelled = set[str]()  # jobs

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self._open()
        return self._session

    def carry_out(self, order: Order) -> None:
        """One order; its last event says how it ended. Nothing is raised."""
        job, error = str(order["job"]), None
        try:
            error = {"draw": self._draw, "refine": self._refine}[order["do"]](job, order)
        except Exception as raised:  # noqa: BLE001  one bad job ends no other
            error = self._known(raised)
        self.cancelled.discard(job)
        self.tell({"event": "finished", "job": job, "error": None if error is None else error_data(error)})

    def _known(self, raised: Exception) -> LensError:
        if isinstance(raised, LensError):
            return raised
        traceback.print_exception(raised)  # into the log
        self.close()  # whatever state it is in
        if isinstance(raised, MemoryError):
            return OutOfMemoryError("the machine ran out of memory", hint="make a smaller picture")
        return LensError(f"internal error: {type(raised).__name__}: {raised}"[:500], hint="the server's log has more")

    def close(self) -> None:
        """Give the memory back."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _draw(self, job: str, order: Order) -> LensError | None:
        request = object_from(order["request"], GenerationRequest)
        found = find_model(request.model)
        resolved = ResolvedRequest(request=request, preset=found.preset, files=found.files, missing=found.missing)
        kind = ImageFormat(order["format"])
        output = OutputPlan(
            template=None, suffix=SUFFIX[kind], format=kind, quality=order["quality"], metadata=order["metadata"],
            history=False,
        )  # fmt: skip
        outcome = self.session.run(
            resolved, output, rewrite=_rewrite_plan(order), parent_id=order["parent_id"], on_event=self._teller(job),
            stop=lambda: job in self.cancelled,
        )  # fmt: skip
        return outcome.stopped

    def _refine(self, job: str, order: Order) -> LensError | None:
        plan = _rewrite_plan(order)
        assert plan is not None, "who refines has a plan"
        if job in self.cancelled:
            return CancelledError("stopped")
        files = find_model(order["model"]).need_files()
        decision = self.session.rewrite(
            order["prompt"], plan, files, on_event=self._teller(job), stop=lambda: job in self.cancelled
        )
        return decision.error() if isinstance(decision, Refused) else None

    def _teller(self, job: str) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            data = {**event_data(event), "job": job}
            if isinstance(event, PictureSaved):
                assert event.data is not None, "a worker has no files"
                data["file"] = base64.b64encode(event.data).decode()
            self.tell(data)

        return tell


def _rewrite_plan(order: Order) -> RewritePlan | None:
    return None if order["rewrite"] is None else object_from(order["rewrite"], RewritePlan)


if __name__ == "__main__":
    main()
