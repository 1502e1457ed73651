"""Many clients at once, some of which cancel or go away: does every job end, and do memory and file handles stay level?

    python -m benchmarks.serve.load [--clients 8] [--jobs 50] [--worker "python tests/backend/server/fake_worker.py"]

Each client is a thread; of its jobs a fifth is cancelled at a random moment, a fifth is left by a client that
does not come back, the rest is listened to until the end. Prints one JSON line; exits with 1 where a job has not ended
done, failed or cancelled, or a finished picture is not on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from backend.picture.outputs import OutputPlan
from backend.server.client import Client
from backend.server.drawers import ProcessDrawer
from backend.server.place import Place, read_pid_file
from backend.server.serve import Plan, serve
from backend.settings import Settings
from backend.types import ImageFormat
from backend.wish import Wish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=50, help="of each client")
    fake = Path(__file__).resolve().parents[2] / "tests/backend/server/fake_worker.py"
    parser.add_argument("--worker", default=shlex.join([sys.executable, str(fake)]), help="the command that draws")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LENS_HOME"] = folder
        told = run(Path(folder), asked.clients, asked.jobs, shlex.split(asked.worker))
    print(json.dumps(told))
    sys.exit(0 if told["ended"] == told["jobs"] and told["missing"] == 0 else 1)


def run(home: Path, clients: int, jobs: int, worker: list[str]) -> dict[str, Any]:
    """The server in a thread of this process, the clients in others."""
    plan = Plan(place=Place(host="127.0.0.1", port=0), api_key=None, keep_alive=None, folder=home / "pictures")
    server = threading.Thread(target=serve, args=(plan, Settings(), [ProcessDrawer(worker)]), kwargs={"say": print})
    server.start()
    file = home / "state/server.pid"
    while (place := read_pid_file(file)) is None or not Client(place).is_ours():
        time.sleep(0.05)
    client, levels, started = Client(place), list[tuple[int, int]](), time.monotonic()
    told = Load(client, home / "pictures")
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(levels, done))
    watcher.start()
    threads = [threading.Thread(target=told.be_client, args=(k, jobs)) for k in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = Counter(str(client.job(job).state) for job in told.ids)
    while states["queued"] + states["running"]:  # of clients that went away
        time.sleep(0.2)
        states = Counter(str(client.job(job).state) for job in told.ids)
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    missing = sum(not path.is_file() for path in told.pictures)
    client.stop()
    server.join()
    half = len(levels) // 2
    return {
        "jobs": clients * jobs, "ended": sum(states.values()), "states": states, "pictures": len(told.pictures),
        "missing": missing, "seconds": round(seconds, 1), "jobs_per_second": round(clients * jobs / seconds, 1),
        "requests": told.requests, "slowest_status_ms": round(1000 * max(told.waits), 1),
        "median_status_ms": round(1000 * sorted(told.waits)[len(told.waits) // 2], 1),
        "resident_mb_half_end": [round(levels[half][0] / 1e6, 1), round(levels[-1][0] / 1e6, 1)],
        "handles_half_end": [levels[half][1], levels[-1][1]],
    }  # fmt: skip


def _watch(levels: list[tuple[int, int]], done: threading.Event) -> None:
    """(resident bytes, open files) of this process, which serves, every half second."""
    me = psutil.Process()
    while not done.wait(0.5):
        levels.append((me.memory_info().rss, me.num_fds()))
    levels.append((me.memory_info().rss, me.num_fds()))


class Load:
    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder
        self.ids, self.pictures, self.waits, self.requests = list[str](), list[Path](), list[float](), 0

    def be_client(self, number: int, jobs: int) -> None:
        """One client's jobs, one after another."""
        draw = random.Random(number)
        for k in range(jobs):
            prompt = draw.choice(["a red fish", "slow", "nan", "oom", "broken", "a hat", "a cup", "a star"])
            wish = Wish(prompt=prompt, num=draw.randint(1, 3), seeds=(str(100 * k),), steps=2, size="176x176")
            plan = OutputPlan(
                template=str(self.folder / f"{number}-{k}-{{seed}}"), suffix=".png", format=ImageFormat.png
            )
            job = self.client.submit(wish, plan)
            self.ids.append(job.id)
            self.requests += 2
            chance = draw.random()
            if chance < 0.2:
                time.sleep(draw.random() * 0.2)
                self.client.cancel(job.id)
            elif chance < 0.4:
                events = self.client.events(job.id)
                for _ in range(draw.randint(1, 4)):
                    next(events, None)
                events.close()
            else:
                for event in self.client.events(job.id):
                    if event["event"] == "picture_saved":
                        self.pictures.append(Path(event["path"]))
            asked = time.monotonic()
            self.client.status()
            self.waits.append(time.monotonic() - asked)
            self.requests += 2


if __name__ == "__main__":
    main()
