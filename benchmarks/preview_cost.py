"""What a preview costs beside the step that it follows.

    python -m benchmarks.preview_cost [--model nano] [--size 256x256] [--steps 20] [--rounds 3]

Seconds of processor time on a CPU, of the clock on a GPU; the medians over all steps but each picture's first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from backend.engine import Engine
from backend.events import Event, PreviewMade, StepDone
from backend.requests import build_request
from backend.settings import load
from backend.types import Preview
from backend.wish import Wish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--size")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    wish = Wish(prompt="a red fish", model=args.model, size=args.size, steps=args.steps, device=args.device)
    resolved = build_request(replace(wish, seeds=("1",)), load(), print)
    clock = time.process_time if args.device in ("auto", "cpu") else time.perf_counter
    with Engine() as engine:
        for preview in Preview:
            watch = Watch(clock)
            for _ in range(args.rounds):
                wanted = replace(resolved, request=replace(resolved.request, preview=preview))
                list(engine.draw(wanted, on_event=watch))
            step = statistics.median(watch.steps)
            line = f"{preview}: a step {step * 1e3:.2f} ms"
            if watch.previews:
                cost = statistics.median(watch.previews)
                line += f", its preview {cost * 1e3:.2f} ms: {cost / step:.2%}"
            print(line)


@dataclass
class Watch:
    """Listens to an engine: seconds between an event and the one before it."""

    clock: Callable[[], float]
    last: float = 0.0
    steps: list[float] = field(default_factory=list[float])
    previews: list[float] = field(default_factory=list[float])

    def __call__(self, event: Event) -> None:
        took = self.clock() - self.last
        if isinstance(event, StepDone) and event.step > 1:
            self.steps.append(took)
        elif isinstance(event, PreviewMade):
            self.previews.append(took)
        self.last = self.clock()


if __name__ == "__main__":
    main()
