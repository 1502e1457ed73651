"""The feed: every batch once, in order, whoever computes it and however long it takes.

Why it can be trusted: the workers sleep so that later batches are ready first, and the batches name their process.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from train.run.feed import Feed


def slow_square(step: int) -> tuple[int, int, int]:
    """Even steps take long, so their successors are ready before them."""
    time.sleep(0.03 if step % 2 == 0 else 0.0)
    return step, step * step, os.getpid()


def drawn(seed: int, step: int) -> float:
    return random.Random(f"{seed} {step}").random()


def broken(step: int) -> int:
    if step == 5:
        raise ValueError("step 5 cannot be drawn")
    return step


@pytest.mark.parametrize("workers", [0, 2])
def test_order(workers: int) -> None:
    batches = list(Feed(slow_square, start=3, stop=15, workers=workers, ahead=3))
    assert [(step, square) for step, square, _ in batches] == [(i, i * i) for i in range(3, 15)]
    processes = {process for _, _, process in batches}
    assert (processes == {os.getpid()}) if workers == 0 else (os.getpid() not in processes)


def test_a_resumed_run_sees_the_same_batches() -> None:
    """From the middle, with another number of workers: batch k depends on k alone."""
    make = functools.partial(drawn, 7)
    whole = list(Feed(make, start=0, stop=12, workers=0))
    assert list(Feed(make, start=5, stop=12, workers=1)) == whole[5:]
    assert len(set(whole)) == 12
    feed = Feed(make, start=0, stop=12, workers=0)
    assert list(feed) == list(feed)  # iterated again, it starts again


def test_nothing_to_do() -> None:
    assert list(Feed(drawn_zero, start=4, stop=4, workers=0)) == []
    assert list(Feed(drawn_zero, start=4, stop=4, workers=1)) == []


drawn_zero = functools.partial(drawn, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_at_its_step(workers: int) -> None:
    seen: list[int] = []
    with pytest.raises(ValueError, match="step 5 cannot be drawn"):
        seen.extend(Feed(broken, start=2, stop=20, workers=workers))
    assert seen == [2, 3, 4]


def test_leaving_early_ends_the_workers() -> None:
    began = time.monotonic()
    for step, _, _ in Feed(slow_square, start=0, stop=10_000, workers=1, ahead=2):
        if step == 3:
            break
    assert time.monotonic() - began < 120  # not the five minutes of all steps


def test_a_worker_leaves_interrupts_to_its_parent() -> None:
    """A terminal's Ctrl-C reaches every process; the step under way still needs its batch."""
    seen = []
    for step, _, process in Feed(slow_square, start=0, stop=12, workers=1, ahead=2):
        seen.append(step)
        os.kill(process, signal.SIGINT)
    assert seen == list(range(12))


def test_a_signal_to_the_whole_group_ends_the_parent_alone() -> None:
    """As SLURM, systemd and `timeout` send it: the parent goes on to a good end with the batches of its workers."""
    code = (
        "import os, signal\n"
        "from tests.train.run.test_feed import Feed, slow_square\n"
        "if __name__ == '__main__':\n"
        "    asked = []\n"
        "    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))\n"
        "    for step, _, _ in Feed(slow_square, start=0, stop=12, workers=1, ahead=2):\n"
        "        if step == 3: os.killpg(0, signal.SIGTERM)\n"
        "    print('asked', len(asked), 'last', step)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, start_new_session=True, check=False
    )
    assert (done.stdout, done.returncode) == ("asked 1 last 11\n", 0), done.stderr


def test_a_worker_ends_with_its_parent() -> None:
    """Also where the parent was killed and could not end it."""
    code = (
        "from tests.train.run.test_feed import Feed, slow_square\n"
        "if __name__ == '__main__':\n"
        "    for step, _, process in Feed(slow_square, start=0, stop=10_000, workers=1): print(process, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        worker.wait(60)  # raises TimeoutExpired
