"""Run a function on every shard: in this process, in worker processes, or on a Ray cluster.

The function takes a shard's number, writes the shard's files and returns nothing. It must be picklable and safe to run
twice, since a worker may die after its work and before its report: a shard's files are put in place in one step, so the
second run finds or replaces them, and nothing is lost or doubled.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

import pyarrow as pa

from backend.errors import CancelledError, LensError, UsageError, counted, first_line, optional_package
from train.run.feed import begin_worker, spawn_context

ENGINES = ("local", "ray")
LOOK = 0.5  # seconds between two looks whether to stop
_RETRIES = 3  # of a Ray task whose node dies; a fault of the function itself is raised at once

Shard = Callable[[int], None]


def run_shards(
    function: Shard,
    shards: Sequence[int],
    engine: str = "local",
    workers: int | None = None,
    *,
    gpus: float = 0.0,
    on_done: Callable[[int], None] = lambda shard: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Run `function(shard)` for all `shards`; `on_done(shard)` is called here as each ends.

    Where `stop` says so no shard begins any more, and those under way end: then CancelledError, if any is left. What
    interrupts this (KeyboardInterrupt) ends local workers at once.

    `workers`: how many at once; local: processes (0: in this one, None: one a core), Ray: tasks (None: as many as the
    cluster's processors). `gpus`: of a Ray task, shares are allowed. Ray hides every GPU from a task that asks for
    none; of a cluster without GPUs none is asked. Raises what the function raised first, locally after the shards under
    way have ended; LensError where a shard kills its worker twice.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", hint=f"engines: {', '.join(ENGINES)}")
    if engine == "ray":
        _run_ray(function, shards, workers, gpus, on_done, stop)
    elif in_one_process(shards, workers):
        for number, shard in enumerate(shards):
            if stop():
                raise _stopped(len(shards) - number)
            function(shard)
            on_done(shard)
    else:
        _run_local(function, shards, workers or os.cpu_count() or 1, on_done, stop)


def in_one_process(shards: Sequence[int], workers: int | None) -> bool:
    """Whether the local engine runs them in the process that asks."""
    return workers == 0 or (workers is None and len(shards) < 2)


def _stopped(left: int) -> CancelledError:
    return CancelledError(
        f"stopped; {counted(left, 'shard')} of this stage are left", hint="the same command goes on from there"
    )


def _run_local(
    function: Shard, shards: Sequence[int], workers: int, on_done: Callable[[int], None], stop: Callable[[], bool]
) -> None:
    """Shards under way when a worker died are tried again one by one, so that the one at fault can be named."""
    left = list(shards)
    while left:
        if stop():
            raise _stopped(len(left))
        for shard in _run_pool(function, left, workers, on_done, stop):
            if stop():
                break
            if _run_pool(function, [shard], 1, on_done, stop):
                raise LensError(
                    f"a worker process died on shard {shard}, and again on that shard alone",
                    hint="too little memory is the usual cause; what was finished is kept",
                )
            left.remove(shard)


def _run_pool(
    function: Shard, left: list[int], workers: int, on_done: Callable[[int], None], stop: Callable[[], bool]
) -> list[int]:
    """Take shards off `left` as they end; returns those that were under way when a worker died (none: all ended)."""
    queue = list(left)
    running: dict[Future[None], int] = {}
    context = spawn_context()
    started = context.Value("i", 0)
    size, others = min(workers, len(left)), set(multiprocessing.active_children())
    with ProcessPoolExecutor(size, mp_context=context, initializer=_begin, initargs=(started,)) as pool:
        try:
            while queue or running:
                if stop():
                    queue.clear()
                    running = {future: shard for future, shard in running.items() if not future.cancel()}
                while queue and len(running) < 2 * workers:  # a second one each, so that nobody waits for this process
                    shard = queue.pop(0)
                    running[pool.submit(function, shard)] = shard
                ended, _ = wait(running, LOOK, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                    shard = running.pop(future)
                    left.remove(shard)
                    on_done(shard)
        except BrokenProcessPool:
            return list(running.values())
        except BaseException as error:
            if not isinstance(error, Exception):  # twice Ctrl-C: what a shard has half written is never read
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return []


def _begin(started: Synchronized[int]) -> None:
    """In a new worker: its number, for the choice of a GPU, one thread to compute, and what every pool does."""
    with started.get_lock():
        os.environ["LENS_WORKER"] = str(started.value)
        started.value += 1
    # Workers share the cores among themselves; each with a pool of threads of its own would be slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pa.set_cpu_count(1)
    begin_worker()


def _call(function: Shard, shard: int) -> None:
    """Ray takes functions only, and a stage is an object that can be called."""
    function(shard)


def _run_ray(
    function: Shard,
    shards: Sequence[int],
    workers: int | None,
    gpus: float,
    on_done: Callable[[int], None],
    stop: Callable[[], bool],
) -> None:
    """One task a shard. A task whose node dies is given to another; Ray counts such deaths, not the function's faults.

    Joins the cluster of RAY_ADDRESS, or starts one on this machine. The nodes must see the work folder and the sources
    under the same paths, and have this package installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers; before the import
    with optional_package():
        import ray
        from ray.exceptions import RayError, RayTaskError
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        alone = None if address else False  # only a cluster that starts here can be asked to have no dashboard
        ray.init(address=address, include_dashboard=alone, log_to_driver=False, logging_level=logging.ERROR)
    try:
        share = gpus if ray.cluster_resources().get("GPU", 0) else 0  # it would wait for one for ever
        task = ray.remote(num_cpus=1, num_gpus=share, max_retries=_RETRIES)(_call)
        shared = ray.put(function)
        queue = list(shards)
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: dict[ray.ObjectRef, int] = {}
        while queue or running:
            while queue and len(running) < limit and not stop():
                shard = queue.pop(0)
                running[task.remote(shared, shard)] = shard
            if not running:
                raise _stopped(len(queue))
            ended, _ = ray.wait(list(running), num_returns=1, timeout=LOOK)
            for reference in ended:
                shard = running.pop(reference)
                try:
                    ray.get(reference)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    raise LensError(f"shard {shard}: lost with its node too often: {first_line(error)}") from error
                on_done(shard)
    finally:
        if started:
            ray.shutdown()
