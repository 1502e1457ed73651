"""Two local Ray nodes draw for one queue, and one of them is killed in the middle: is every picture there, once?

    python -m benchmarks.serve.cluster [--jobs 6] [--pictures 2] [--steps 2]

Lens-Nano on each node's one CPU. Prints one JSON line; exits with 1 where a job is lost or a picture made twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backend.picture.history import History
from backend.picture.images import read_metadata
from backend.picture.outputs import OutputPlan
from backend.requests import build_request
from backend.server.cluster import open_cluster
from backend.server.jobs import JobState
from backend.server.pictures import Pictures
from backend.server.queue import Queue
from backend.server.service import Service
from backend.settings import Settings
from backend.types import ImageFormat
from backend.wish import Wish

TRIES = 5  # to start two nodes
STORE_BYTES = 100 << 20  # shared memory of a node; pictures go through it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("jobs", 6), ("pictures", 2), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    cluster, second = start_nodes()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            open_cluster(2, keep_alive=None, say=print, address=cluster.address) as drawers,
        ):
            told = asyncio.run(
                run(asked, Path(folder), drawers, lambda: cluster.remove_node(second, allow_graceful=False))
            )
    finally:
        cluster.shutdown()
    print(json.dumps(told))
    sys.exit(0 if told["done"] == asked.jobs and told["files"] == told["history"] == asked.jobs * asked.pictures else 1)


def start_nodes() -> tuple[Any, Any]:
    """A cluster of two local nodes with one CPU each, and the second node.

    Ray gives a node half a minute to come up and a worker one, which a busy machine may miss: more time where it can be
    given, and another try where it cannot.
    """
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
    os.environ.setdefault("RAY_health_check_timeout_ms", "60000")
    from ray.cluster_utils import Cluster

    for left in reversed(range(TRIES)):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES)
            return cluster, cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        except Exception as error:
            cluster.shutdown()
            if not left:
                raise
            print(f"a node did not come up, once more: {error}", file=sys.stderr)
    raise AssertionError("the last try raises")


async def run(asked: Any, folder: Path, drawers: list[Any], kill: Any) -> dict[str, Any]:
    """Enter all jobs, kill the node when both have drawn something, wait for the end, count."""
    history = folder / "history.db"
    service = Service(
        Settings(), Queue(folder / "queue.db"), drawers, Pictures(folder / "spool", history), folder=folder,
        keep_alive=None,
    )  # fmt: skip
    await service.start()
    started, output = (
        time.monotonic(),
        OutputPlan(template=str(folder / "{slug}-{seed}"), suffix=".png", format=ImageFormat.png),
    )
    wishes = [
        Wish(prompt=f"fish {k}", num=asked.pictures, seeds=("1",), steps=asked.steps, size="192x192")
        for k in range(asked.jobs)
    ]
    jobs = [service.submit(build_request(wish, Settings(), print), output, {"prompt": wish.prompt}) for wish in wishes]
    killed = None
    while not all(service.job(job.id).state.ended for job in jobs):
        nodes = {drawer["pid"] for drawer in service.status()["drawers"] if drawer["pid"]}
        if killed is None and len(nodes) == 2 and sum(service.job(job.id).made for job in jobs) >= 2:
            await asyncio.to_thread(kill)
            killed = round(time.monotonic() - started, 1)
        await asyncio.sleep(0.1)
    ended = [service.job(job.id) for job in jobs]
    moved = [job.id for job in jobs if await went_on(service, job.id)]
    seconds = round(time.monotonic() - started, 1)
    await service.stop()
    files = sorted(folder.glob("*.png"))
    records = {(read_metadata(file).record or {})["id"] for file in files}
    with History(history) as kept:
        entered = len(kept)
    return {
        "done": sum(job.state is JobState.done for job in ended), "files": len(files), "records": len(records),
        "history": entered, "killed_after": killed, "went_on": len(moved),
        "seconds": seconds,
        "errors": [job.error for job in ended if job.error is not None],
    }  # fmt: skip


async def went_on(service: Service, job: str) -> bool:
    """Whether a job lost its replica and was taken up by another."""
    told = [event.get("text", "") async for event in service.events(job, 0) if event is not None]
    return any("goes on with another" in text for text in told)


if __name__ == "__main__":
    main()
