"""What `lens bench` does: build the cases, have them measured, print them. stdout is the tables, stderr is talk.

Light ring at module scope; torch arrives with the first measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from backend.errors import LensError, PartialBatchError, UsageError
from backend.types import Sampler
from backend.wish import ROWS, Wish
from lens_cli.terminal import bench_tables
from lens_cli.terminal.console import Talk

if TYPE_CHECKING:
    from backend.bench.measure import Measurement
    from backend.requests import ResolvedRequest

POINTS_LIMIT = 100  # of one sweep
SWEPT = ("size", "ar", "base", "steps", "guidance", "sampler", "dtype", "quant", "profile", "vram")  # fields of a wish
# About as long as the dense captions a reasoner writes.
PROMPT = (
    "A bright studio photograph of three red balloons floating above a low green hill in the early morning. A small "
    "white house with a blue door stands to the left of them, with a yellow bicycle leaning on its fence. The sky is "
    "pale blue with two thin clouds, the light comes from the right, and a wooden sign in front says OPEN."
)


@dataclass(frozen=True, kw_only=True)
class BenchChoice:
    """What was typed; None means "the model's default"."""

    wish: Wish
    random: str | None  # registry name; None: weights from files
    text_tokens: int  # of the random features
    sweep: tuple[str, ...]  # "steps=4,20"
    runs: int
    against: bool
    float32_run: bool
    plot: Path | None  # SVG


def bench(choice: BenchChoice, talk: Talk) -> None:
    """Measure every case, print each as it is finished. Raises UsageError, FileError and what the models raise."""
    from backend.disk import make_folder

    cases = build_cases(choice, talk)
    if choice.plot is not None:
        if choice.plot.suffix.lower() != ".svg":
            raise UsageError(f"--output {choice.plot} is no SVG file", hint="name it like bench.svg")
        make_folder(choice.plot.absolute().parent)
    if not choice.random:
        cases[0].need_files()  # before torch: a model that is not here is said at once
    measured: list[Measurement] = []
    failed: LensError | None = None
    try:
        for measurement in _measure_all(cases, choice, talk):
            for line in ([""] if measured else []) + bench_tables.describe(measurement):
                talk.data(line)
            measured.append(measurement)
    except LensError as error:
        if not measured:
            raise
        failed = PartialBatchError(
            f"{len(cases) - len(measured)} of {len(cases)} points were not measured: {error}", hint=error.hint
        )
    if choice.plot is not None:
        _draw(measured, choice.plot, talk)
    data = {"points": [bench_tables.as_data(measurement) for measurement in measured]}
    if failed is not None:
        talk.fail(failed, data)
        raise typer.Exit(failed.exit_code)
    talk.result(data)


def build_cases(choice: BenchChoice, talk: Talk) -> list[ResolvedRequest]:
    """One complete case for every combination of the sweep's values. Raises UsageError."""
    from backend import presets
    from backend.requests import build_request, find_model
    from backend.settings import load

    if choice.random is not None:
        if choice.wish.model is not None:
            raise UsageError("--model and --random exclude each other", hint="drop one of them")
        presets.get(choice.random)
        if choice.wish.prompt is not None:
            raise UsageError("--random encodes no prompt", hint="--text-tokens sets the length of the text")
    settings = load(talk.warn)
    same = Wish(prompt=PROMPT, model=choice.random, seeds=("0",), loras=()).overridden_by(choice.wish)
    found = find_model(same.model or settings.model or presets.default_name())
    cases: list[ResolvedRequest] = []
    for swept in parse_sweep(choice.sweep):
        # What cannot be honoured is said once.
        warn = talk.detail if cases else talk.warn
        resolved = build_request(same.overridden_by(swept), settings, warn, found=found)
        if choice.against and resolved.request.sampler is not Sampler.euler:
            raise UsageError("--against reference takes --sampler euler: the published pipeline has no other")
        cases.append(resolved if choice.random is None else replace(resolved, files=None))
    return cases


def parse_sweep(texts: Sequence[str]) -> list[Wish]:
    """["steps=4,20", "base=128"] -> the wishes for 4 steps and base 128, and for 20 and 128. Raises UsageError."""
    kinds: dict[str, Callable[[str], Any]] = {name: ROWS[name].kind for name in SWEPT}
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip().lower()
        if not equals or key not in kinds or not values.strip():
            raise UsageError(
                f"--sweep {text!r} is not KEY=VALUE,VALUE", hint=f"KEY is one of {', '.join(kinds)}: --sweep steps=4,20"
            )
        if key in axes:
            raise UsageError(f"--sweep {key} is given twice", hint=f"--sweep {key}=A,B,C")
        try:
            axes[key] = [kinds[key](value.strip()) for value in values.split(",")]
        except ValueError:
            kind = kinds[key]
            known = (
                ", ".join(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else f"numbers, as in --{key}"
            )
            raise UsageError(f"--sweep {text!r} holds a value that is no {key}", hint=f"known: {known}") from None
    if "size" in axes and ("base" in axes or "ar" in axes):
        raise UsageError("--sweep size and --sweep base or ar exclude each other", hint="drop one of them")
    points = [Wish(**dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    if len(points) > POINTS_LIMIT:
        raise UsageError(
            f"the sweep has {len(points)} points; the limit is {POINTS_LIMIT}", hint="sweep less at once: all combine"
        )
    return points


def _measure_all(cases: Sequence[ResolvedRequest], choice: BenchChoice, talk: Talk) -> Iterator[Measurement]:
    from backend.bench.measure import measure
    from backend.memory.exhausted import out_of_memory_as_error

    front, random_tokens = None, None if choice.random is None else choice.text_tokens
    for number, case in enumerate(cases):
        talk.say(f"{number + 1}/{len(cases)}: {bench_tables.label(case.request, random_tokens)}")
        with out_of_memory_as_error(case.request):
            measurement, front = measure(
                case,
                random_tokens=random_tokens,
                runs=choice.runs,
                against=choice.against,
                float32_run=choice.float32_run,
                front=front,
                say=lambda line: talk.say(f"  {line}"),
            )
        yield measurement


def _draw(measured: Sequence[Measurement], path: Path, talk: Talk) -> None:
    from backend.disk import write_atomic
    from lens_cli.terminal.bars import draw

    first = measured[0]
    model = Path(first.request.model).name
    title = f"{model}, {'' if first.random_tokens is None else 'random weights, '}seconds a picture, warm"
    svg = draw(title, bench_tables.machine_line(first), [row for m in measured for row in bench_tables.bars(m)])
    write_atomic(path, svg.encode())
    talk.say(f"plot: {path}")
