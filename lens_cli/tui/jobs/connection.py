"""What the app asks of whoever draws, as a protocol: the server in another process, or a scripted one in a test.

Nothing on the screen waits for a model: each call is made in a thread, and its answer arrives as a message.

Light ring: standard library only; the client arrives with `connect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from backend.picture.outputs import OutputPlan
    from backend.server.jobs import Job, JobEvent
    from backend.settings import Settings
    from backend.wish import Wish


class Connection(Protocol):
    """A server that draws, as `backend.server.client` has it. Every call may take a while and raise a LensError."""

    def submit(
        self, wish: Wish, output: OutputPlan | None, *, parent_id: str | None = None, relation: str | None = None
    ) -> Job: ...
    def events(self, job_id: str, after: int = 0) -> Iterator[JobEvent]: ...
    def cancel(self, job_id: str) -> Job: ...
    def move(self, job_id: str, position: int) -> Job: ...
    def jobs(self) -> Sequence[Job]: ...
    def picture(self, job_id: str, index: int) -> bytes: ...
    def refine(self, text: str) -> Mapping[str, Any]: ...
    def models(self) -> Sequence[Mapping[str, Any]]: ...


Connect = Callable[["Settings"], Connection]


def connect(settings: Settings) -> Connection:
    """The server that runs, or one that is started. Takes until it answers. Raises LensError."""
    from backend.server.client import find_server, start_server

    return find_server(settings) or start_server(settings)
