"""`lens serve --engine ray`: the drawing as a Ray Serve deployment, one replica a GPU, on any number of machines.

The queue, the files and HTTP stay in the one process that was started; a replica gets an order and streams its events
back, pictures among them, so that the machines need no common disk. Where a machine goes away, the job goes on at
another replica with the picture it was at: nothing is lost, and nothing made twice, for whoever draws writes nothing.

Heavy ring: Ray.
"""

# pyright: basic
# Ray's own interface is half typed.

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from backend.errors import CancelledError, LensError, first_line, optional_package
from backend.server.drawers import WorkerLostError, resident_bytes
from backend.server.jobs import error_data

NAME = "lens"  # of the application within Ray Serve
START_SECONDS = 300.0  # that the replicas may take until the first is there


@contextmanager
def open_cluster(
    replicas: int | None, *, keep_alive: float | None, say: Callable[[str], None], address: str | None = None
) -> Generator[list[RayDrawer]]:
    """Replicas that draw, one drawer each. Joins the cluster at `address` or of RAY_ADDRESS, else starts one here.

    `replicas` None: one a GPU, or one where there is none. Raises LensError where Ray Serve is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers; before the import
    with optional_package("ray[serve]"):
        import ray
        from ray import serve
    ours = not ray.is_initialized()
    if ours:
        address = address or os.environ.get("RAY_ADDRESS")
        alone = None if address else False  # only a cluster that starts here can be asked to have no dashboard
        ray.init(address=address, include_dashboard=alone, log_to_driver=False, logging_level=logging.ERROR)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = replicas or max(1, gpus)
        deployment = serve.deployment(
            name="Replica", num_replicas=count, max_ongoing_requests=1,  # one order each, the others wait here
            ray_actor_options={"num_gpus": 1 if gpus else 0, "num_cpus": 1},
        )(Replica)  # fmt: skip
        serve.start(proxy_location="Disabled")
        handle = serve.run(deployment.bind(keep_alive), name=NAME, route_prefix=None)
        _wait(serve, say, count)
        yield [RayDrawer(handle) for _ in range(count)]
    finally:
        serve.shutdown()
        if ours:
            ray.shutdown()


def _wait(serve: Any, say: Callable[[str], None], count: int) -> None:
    """Until all replicas run. Raises LensError where they do not come up."""
    say(f"waiting for {count} replica{'' if count == 1 else 's'} of Ray Serve")
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        status = serve.status().applications[NAME]
        if status.status == "RUNNING":
            return
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise LensError(f"Ray Serve did not start: {status.message}"[:500])
        time.sleep(0.2)
    raise LensError(
        f"the replicas did not start within {START_SECONDS:g} s", hint="ray status shows what they wait for"
    )


class Replica:
    """One process with one session, somewhere."""

    def __init__(self, keep_alive: float | None) -> None:
        """`keep_alive`: seconds after which an idle model's memory is given back; None: never."""
        from backend.server.worker import Drawer, open_session

        self._drawer, self._thread = Drawer(open_session, lambda event: None), ThreadPoolExecutor(1)
        self._keep_alive, self._used, self._busy = keep_alive, time.monotonic(), False
        if keep_alive is not None:
            threading.Thread(target=self._rest, daemon=True).start()

    async def carry_out(self, line: str) -> AsyncGenerator[str]:
        """The events of an order, all as JSON. Stops after its step where whoever asked goes away."""
        loop, heard, order = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]](), json.loads(line)
        self._drawer.tell = lambda event: loop.call_soon_threadsafe(heard.put_nowait, dict(event)) and None
        self._busy = True
        work = loop.run_in_executor(self._thread, self._drawer.carry_out, order)
        where = {"event": "worker", "job": order["job"], "node": os.uname().nodename, "pid": os.getpid()}
        try:
            yield json.dumps(where)
            while True:
                event = await heard.get()
                if event["event"] == "finished":
                    yield json.dumps(event | {"resident": resident_bytes(os.getpid())})
                    return
                yield json.dumps(event, allow_nan=False)
        finally:
            self._drawer.cancelled.add(order["job"])
            await asyncio.shield(work)
            self._drawer.cancelled.discard(order["job"])
            self._busy, self._used = False, time.monotonic()

    def _rest(self) -> None:
        """Give back what lies idle for too long, in the thread that draws."""
        assert self._keep_alive is not None
        while True:
            time.sleep(max(0.5, self._keep_alive / 10))
            if not self._busy and time.monotonic() - self._used > self._keep_alive:
                self._thread.submit(self._drawer.close)
                self._used = time.monotonic()


class RayDrawer:
    """Sends one order at a time to whichever replica is free; see `backend.server.drawers.Drawer`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True, method_name="carry_out")
        self._lock = asyncio.Lock()
        self._answer: Any = None  # the stream of the order at hand
        self._job: str | None = None
        self._where = dict[str, Any]()  # the last replica

    async def carry_out(self, order: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException, RequestCancelledError

        async with self._lock:
            self._job, self._answer = str(order["job"]), self._handle.remote(json.dumps(order, allow_nan=False))
            try:
                async for line in self._answer:
                    event = json.loads(line)
                    if event["event"] == "worker":
                        self._where = {"node": event["node"], "pid": event["pid"]}
                        continue
                    self._where["resident"] = event.pop("resident", self._where.get("resident"))
                    yield event
            except (RequestCancelledError, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and asyncio.current_task().cancelling():  # pyright: ignore[reportOptionalMemberAccess]
                    raise
                yield {"event": "finished", "job": order["job"], "error": error_data(CancelledError("stopped"))}
            except (RayError, RayServeException) as error:
                self._where = {}
                raise WorkerLostError(f"a replica was lost: {first_line(error)}"[:300]) from error
            finally:
                self._answer = self._job = None

    async def cancel(self, job: str, *, hard: bool) -> None:
        """Both ways alike: a replica that does not stop is given up."""
        if self._answer is not None and self._job == job:
            self._answer.cancel()

    async def unload(self) -> None:
        """Replicas see to that by themselves: see `Replica`."""

    def status(self) -> dict[str, Any]:
        return {"kind": "ray", "pid": None, "resident": None, **self._where}
