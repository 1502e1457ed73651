"""A client of the server, over HTTP with the standard library alone: a command that draws with it starts at once.

    client = find_server(settings) or start_server(settings)
    job = client.submit(Wish(prompt="a red fish"), None)
    for event in client.events(job.id): ...

Every method raises NetworkError where nobody answers, and the error that the server states otherwise.

Light ring: standard library only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, cast

from backend.disk import write_error
from backend.errors import LensError, NetworkError, UntrustedError, UsageError, first_line
from backend.paths import server_file, server_log
from backend.picture.outputs import OutputPlan
from backend.server.jobs import Job, error_from, job_from
from backend.server.place import Place, is_loopback, parse_host, proof, read_pid_file
from backend.server.wire import wish_data
from backend.settings import Settings
from backend.wish import Wish

ANSWER_BYTES = 64 << 20  # of one answer: a list of jobs, a picture
LINE_BYTES = 8 << 20  # of one event: a preview
START_SECONDS = 30.0  # that a new server may take until it answers
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds before each new try of a broken stream of events


def find_server(settings: Settings) -> Client | None:
    """The server that the settings name, or else the one of this home that runs; None: none does.

    Raises UsageError for an address that is none, NetworkError where a named one does not answer.
    """
    ours = read_pid_file(server_file())
    if settings.host is not None:
        named = parse_host(settings.host, "the setting host")
        if ours is None or not is_loopback(named.host) or named.port != ours.port:
            return _named(Client(replace(named, key=settings.api_key)))
    client = None if ours is None else Client(ours)
    return client if client is not None and client.is_ours() else None


def _named(client: Client) -> Client | None:
    """A server that is named and none of this home's; None: it would be on this machine, and is not there yet."""
    try:
        client.status()
    except NetworkError:
        if is_loopback(client.place.host):
            return None
        raise
    return client


def start_server(settings: Settings, environment: Mapping[str, str] | None = None) -> Client:
    """A server of this home in the background, which ends when nobody has used it for as long as models are kept.

    `environment`: variables that it gets beside ours, such as LENS_HOST. Raises NetworkError with what it said last, if
    it does not come up.
    """
    log = server_log()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            place = log.stat().st_size
            child = subprocess.Popen(
                [sys.executable, "-m", "backend.server.serve", "--leave-when-idle"],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
    except OSError as error:
        raise write_error(log, error) from error
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if (client := find_server(settings)) is not None:
            return client
        if child.poll() is not None and (client := find_server(settings)) is None:
            break  # not where another one has come first
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        said = log.read_bytes()[place:][-2000:].decode("utf-8", "replace").strip()
        last = said.splitlines()[-1] if said else "nothing"
        raise NetworkError(f"the server did not start; it said: {last}", hint=f"see {log}")
    raise NetworkError("the server did not start", hint=f"see {log}")


class Client:
    """Asks one server. Each question has a connection of its own, so several threads may ask."""

    def __init__(self, place: Place, *, timeout: float = 30.0) -> None:
        """`timeout`: seconds without a byte of an answer."""
        self.place, self.timeout = place, timeout

    # ----------------------------------------------------------------------------------------------------------- jobs

    def submit(
        self, wish: Wish, output: OutputPlan | None, *, rewrite: Mapping[str, Any] | None = None,
        parent_id: str | None = None, relation: str | None = None,
    ) -> Job:  # fmt: skip
        """Put a job at the end of the queue. `output` None, or without a template: its pictures are fetched with
        `picture`. `rewrite`: a plan of the reasoner's as JSON; None: none is asked. Sent twice it is still one job."""
        body = {
            "id": secrets.token_hex(8), "wish": wish_data(wish), "output": None if output is None else asdict(output),
            "rewrite": rewrite, "parent_id": parent_id, "relation": relation,
        }  # fmt: skip
        try:
            return self._job(self._ask("POST", "/v1/jobs", body))
        except NetworkError as error:
            if type(error) is not NetworkError:  # it answered: busy
                raise
            return self._job(self._ask("POST", "/v1/jobs", body))

    def jobs(self) -> list[Job]:
        """Those that run or wait, in their order, then those that have ended, the last one first."""
        return [self._job(one) for one in self._list(self._ask("GET", "/v1/jobs"), "jobs")]

    def job(self, job_id: str) -> Job:
        return self._job(self._ask("GET", f"/v1/jobs/{job_id}"))

    def cancel(self, job_id: str) -> Job:
        """Stop a job after its current step, or take it out of the queue. One that has ended stays as it is."""
        return self._job(self._ask("POST", f"/v1/jobs/{job_id}/cancel"))

    def move(self, job_id: str, position: int) -> Job:
        """Give a waiting job another place; 0 is the next."""
        return self._job(self._ask("POST", f"/v1/jobs/{job_id}/move", {"position": position}))

    def picture(self, job_id: str, index: int) -> bytes:
        """The file of one picture that was saved."""
        return self._bytes("GET", f"/v1/jobs/{job_id}/pictures/{index}")

    def events(self, job_id: str, after: int = 0) -> Generator[dict[str, Any]]:
        """What happened since the event of the number `after`, and what happens, until the job has ended.

        A stream that breaks is taken up again, also at a server that was started anew. Blocks between events: read it
        in a thread of its own.
        """
        for pause in (*PAUSES, None):
            try:
                for event in self._stream(f"/v1/jobs/{job_id}/events?after={after}"):
                    after = max(after, int(event.get("number", 0)))
                    yield event
                    if event.get("event") == "job_changed" and self._job(event.get("state")).state.ended:
                        return
                raise NetworkError("the server ended the stream of events")
            except NetworkError:
                if pause is None:
                    raise
                time.sleep(pause)
                self._find_again()

    # ---------------------------------------------------------------------------------------------------- other things

    def refine(self, text: str, plan: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the reasoner makes of a request: prompt, original, expander, cached. Raises RefusedError.

        `plan`: an owner's `RewritePlan` as JSON; None: as the server's settings say.
        """
        return self._dict(self._ask("POST", "/v1/refine", {"prompt": text, "rewrite": plan}, timeout=600))

    def models(self) -> list[dict[str, Any]]:
        """The models on the server's disk: id, image_defaults, ..."""
        return [self._dict(one) for one in self._list(self._ask("GET", "/v1/models"), "data")]

    def status(self) -> dict[str, Any]:
        """What runs there, what is in memory and until when."""
        return self._dict(self._ask("GET", "/v1/status", timeout=5))

    def unload(self) -> None:
        """Give back the memory of the model, after the job that runs."""
        self._ask("POST", "/v1/unload", {})

    def stop(self) -> None:
        """End the server after the current step; jobs that wait are kept for the next one."""
        self._ask("POST", "/v1/stop", {})

    def is_ours(self) -> bool:
        """Whether who answers knows the key in the file that named this place."""
        nonce = secrets.token_hex(16)
        try:
            answer = self._dict(self._ask("GET", f"/health?nonce={nonce}", timeout=2, show=False)).get("proof")
        except LensError:
            return False
        return isinstance(answer, str) and secrets.compare_digest(answer, proof(self.place.key or "", nonce))

    # ------------------------------------------------------------------------------------------------------------ HTTP

    def _find_again(self) -> None:
        """The server of this home may have been started anew, with another key."""
        place = read_pid_file(server_file()) if self.place.pid is not None else None
        if place is not None and place.pid != self.place.pid and Client(place).is_ours():
            self.place = place

    @contextlib.contextmanager
    def _open(
        self, method: str, path: str, body: object = None, *, timeout: float | None = None, show: bool = True
    ) -> Generator[http.client.HTTPResponse]:
        """An answer that is no error. `show`: the key."""
        kind = http.client.HTTPSConnection if self.place.tls else http.client.HTTPConnection
        connection = kind(self.place.host, self.place.port, timeout=timeout or self.timeout)
        headers = {"Authorization": f"Bearer {self.place.key}"} if self.place.key and show else {}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _stated(response.status, response.read(1 << 20))
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(
                f"the server at {self.place.url} does not answer: {first_line(error)}", hint="see lens ps"
            ) from error
        finally:
            connection.close()

    def _bytes(self, method: str, path: str, body: object = None, **how: Any) -> bytes:
        with self._open(method, path, body, **how) as response:
            data = response.read(ANSWER_BYTES + 1)
        if len(data) > ANSWER_BYTES:
            raise UntrustedError(f"the server at {self.place.url} answers with more than {ANSWER_BYTES >> 20} MB")
        return data

    def _ask(self, method: str, path: str, body: object = None, **how: Any) -> Any:
        try:
            return json.loads(self._bytes(method, path, body, **how))
        except (ValueError, RecursionError) as error:
            raise UntrustedError(f"the server at {self.place.url} answers with something else than JSON") from error

    def _stream(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a text/event-stream; a comment every few seconds says that the server is there."""
        with self._open("GET", path) as response:
            while line := response.readline(LINE_BYTES + 1):
                if len(line) > LINE_BYTES:
                    raise UntrustedError(f"the server at {self.place.url} sends an event that is too long")
                if line.startswith(b"data: "):
                    try:
                        yield self._dict(json.loads(line[6:]))
                    except (ValueError, RecursionError) as error:
                        raise UntrustedError(f"the server at {self.place.url} sends an event that is none") from error

    def _job(self, data: object) -> Job:
        return job_from(data, f"the server at {self.place.url}")

    def _dict(self, data: object) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise UntrustedError(f"the server at {self.place.url} answers with no object")
        return cast("dict[str, Any]", data)

    def _list(self, data: object, name: str) -> list[object]:
        found = self._dict(data).get(name)
        if not isinstance(found, list):
            raise UntrustedError(f"the server at {self.place.url} answers without {name}")
        return cast("list[object]", found)


def _stated(status: int, body: bytes) -> LensError:
    """The error of an answer: the server's own words, or what the status says."""
    try:
        told = json.loads(body).get("error")
    except (ValueError, AttributeError, RecursionError):
        told = None
    if isinstance(told, dict):
        return error_from(cast("dict[str, Any]", told))
    if status in (401, 403):
        return UsageError(f"the server answers {status}: no entry", hint="set LENS_API_KEY")
    return NetworkError(f"the server answers {status}")
