"""Engines: every shard once, whatever dies. What is trusted: files that the shards themselves leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from backend.errors import CancelledError, LensError, UsageError
from train.data.engine import run_shards
from train.data.work import Work, stamp


@dataclass(frozen=True)
class Square:
    """Writes shard² through the work folder, and leaves a trace of every start. `seconds`: how long it takes."""

    folder: Path
    seconds: float = 0.0
    dies_on: int | None = None  # the process ends at once …
    dies_always: bool = False  # … on the first try only, or on every one
    fails_on: int | None = None

    def __call__(self, shard: int) -> None:
        (self.folder / "starts").mkdir(exist_ok=True)
        trace = self.folder / "starts" / f"{shard}-{os.getpid()}-{time.time_ns()}"
        trace.write_text(_node())
        time.sleep(self.seconds)
        if shard == self.dies_on and (self.dies_always or len(self.starts(shard)) == 1):
            os._exit(9)
        if shard == self.fails_on:
            raise UsageError(f"shard {shard} is not to my liking")
        Work(self.folder).write("square", shard, pa.table({"value": [shard**2]}), stamp(1, {}, str(shard)))

    def starts(self, shard: int) -> list[Path]:
        return list((self.folder / "starts").glob(f"{shard}-*"))

    def results(self) -> dict[int, list[int]]:
        work = Work(self.folder)
        return {shard: work.read("square", shard)["value"].to_pylist() for shard in work.shards("square")}


def _node() -> str:
    """Of the Ray node that this runs on, and the GPUs that it may see; empty elsewhere."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return f"{ray.get_runtime_context().get_node_id()} {ray.get_gpu_ids()}"


def _expected(count: int) -> dict[int, list[int]]:
    return {shard: [shard**2] for shard in range(count)}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_shard_runs_once(tmp_path: Path, workers: int) -> None:
    square, ended = Square(tmp_path), list[int]()
    run_shards(square, range(7), "local", workers, on_done=ended.append)
    assert square.results() == _expected(7)
    assert sorted(ended) == list(range(7))
    assert all(len(square.starts(shard)) == 1 for shard in range(7))


def test_a_worker_that_dies_costs_nothing_but_time(tmp_path: Path) -> None:
    square, ended = Square(tmp_path, dies_on=1), list[int]()
    run_shards(square, range(4), "local", 1, on_done=ended.append)
    assert square.results() == _expected(4)
    assert sorted(ended) == list(range(4))
    assert len(square.starts(1)) == 2


def test_a_shard_that_kills_its_workers_is_named(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="died on shard 1, and again"):
        run_shards(Square(tmp_path, dies_on=1, dies_always=True), range(3), "local", 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_function_comes_through(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UsageError, match="shard 2 is not to my liking"):
        run_shards(Square(tmp_path, fails_on=2), range(4), "local", workers)


@dataclass(frozen=True)
class Shielded:
    """Notes whether a Ctrl-C of the terminal would reach the process that works on the shard."""

    folder: Path

    def __call__(self, shard: int) -> None:
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        (self.folder / f"{shard}").write_text(f"{ignored} {os.getsid(0) == os.getpid()}")


def test_stopping_leaves_whole_shards_and_the_rest_for_the_next_time(tmp_path: Path) -> None:
    ended = list[int]()
    with pytest.raises(CancelledError, match=r"stopped; [234] shards of this stage are left"):
        run_shards(Shielded(tmp_path), range(5), "local", 1, on_done=ended.append, stop=lambda: bool(ended))
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(found) == sorted(map(str, ended)) and set(found.values()) == {"True True"}
    ended.clear()
    with pytest.raises(CancelledError, match="1 shard of"):
        run_shards(Shielded(tmp_path), range(2), "local", 0, on_done=ended.append, stop=lambda: 0 in ended[-1:])


def test_an_interruption_ends_the_workers_at_once() -> None:
    def press(shard: int) -> None:
        raise KeyboardInterrupt

    before, began = set(psutil.Process().children()), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_shards(Sleep(0.0, 300.0), range(2), "local", 1, on_done=press)
    assert time.monotonic() - began < 60  # not the five minutes of the second shard
    left = set(psutil.Process().children()) - before
    assert [child.cmdline() for child in left if "resource_tracker" not in str(child.cmdline())] == []


@dataclass(frozen=True)
class Sleep:
    """Takes so many seconds of the first shard, and of the others."""

    first: float
    others: float

    def __call__(self, shard: int) -> None:
        time.sleep(self.others if shard else self.first)


def test_workers_end_when_the_command_is_killed(tmp_path: Path) -> None:
    """kill -9 tells nobody. A worker that stayed would hold its memory, and its GPU, for ever."""
    square = f"Square(Path({str(tmp_path)!r}), seconds=60)"
    code = "from pathlib import Path\nfrom tests.train.data.test_engine import *\n"
    code += f"run_shards({square}, range(2), workers=1)"
    script = tmp_path / "script.py"  # a file, since spawned workers import the main module again
    script.write_text(f"if __name__ == '__main__':\n    exec({code!r})\n")
    root = Path(__file__).resolve().parents[3]
    said = (tmp_path / "said").open("w+")
    command = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(root)}, stderr=said)
    try:
        while not (found := list(tmp_path.glob("starts/0-*"))):
            assert command.poll() is None
            time.sleep(0.05)
        worker = int(found[0].name.split("-")[1])
        assert psutil.pid_exists(worker)
    finally:
        command.kill()
        command.wait()
    _, alive = psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=20)
    assert not alive
    time.sleep(0.5)  # for the process that tidies up after them
    said.seek(0)
    assert said.read() == ""
    said.close()


def test_unknown_engine() -> None:
    with pytest.raises(UsageError, match="unknown engine 'spark'"):
        run_shards(print, [0], "spark")


def test_a_ray_node_that_is_killed_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes on this machine; one is killed, without a word to the other, while it works on a shard.

    Each says that it has a GPU, which Ray believes, and four tasks share one.
    """
    import threading

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test
    small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_log_monitor": False, "num_gpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    assert cluster.head_node is not None
    try:
        doomed = cluster.add_node(**small)
        ray.init(address=cluster.address, log_to_driver=False)
        square, count, ended = Square(tmp_path, seconds=0.4), 12, list[int]()

        def traces() -> dict[str, str]:
            return {file.name: file.read_text() for file in tmp_path.glob("starts/*")}

        def kill_in_the_middle() -> None:
            while sum(doomed.node_id in where for where in traces().values()) < 2:  # its second shard is under way
                time.sleep(0.02)
            cluster.remove_node(doomed, allow_graceful=False)

        killer = threading.Thread(target=kill_in_the_middle, daemon=True)
        killer.start()
        run_shards(square, range(count), "ray", gpus=1 / 4, on_done=ended.append)
        killer.join(timeout=30)
        assert not killer.is_alive()

        seen = traces()
        both = {doomed.node_id, cluster.head_node.node_id}
        assert set(seen.values()) == {f"{node} [0]" for node in both}  # both worked, and saw their GPU
        starts = Counter(int(name.split("-")[0]) for name in seen)
        assert max(starts.values()) == 2, starts  # what was under way when it died was begun again …
        assert square.results() == _expected(count)  # … nothing is lost, and each shard has one file
        assert sorted(ended) == list(range(count))  # … and nothing was told twice
    finally:
        ray.shutdown()
        cluster.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
