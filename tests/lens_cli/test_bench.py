"""`lens bench` from the outside: its JSON, its tables, its plot, its refusals. The model is random and tiny, or has
Lens-Nano's shape; what the numbers mean is tested in tests/backend."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.backend.tiny_weights import write_runnable
from tests.lens_cli.cli import Run, lens, real_inside
from tests.lens_cli.test_json_schemas import schema

PHASES = ["import", "load encoder", "encode", "load transformer", "fold", "load vae", "denoise", "step", "decode"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runnable(tmp_path_factory.mktemp("model") / "tiny")


def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> Run:
    """`lens bench` in this process, with the engine as it is. The processes that only import lens are left out, which
    take 3 s each: the first test starts them."""
    from backend.bench import measure
    from backend.bench.timing import Took

    monkeypatch.setattr(measure, "_import_once", lambda: (Took(2.5, 2.0), 400_000_000))
    return real_inside(monkeypatch, capfd, "bench", *words)


def positive(spread: dict[str, Any]) -> bool:
    values = [spread["median"], spread["min"], spread["max"], *spread["samples"]]
    ordered = spread["min"] <= spread["median"] <= spread["max"]
    return ordered and all(math.isfinite(value) and value > 0 for value in values)


def test_json_of_a_model_in_a_process_of_its_own(model: Path) -> None:
    words = ["bench", "-m", str(model), "--size", "112x128", "--steps", "2", "--runs", "2", "--json"]
    run = lens(*words, real=True, start=True, timeout=400)
    assert run.code == 0, run.err
    schema("bench").validate(run.json["data"])
    (point,) = run.json["data"]["points"]
    assert list(point["phases"]) == [*PHASES, "picture"]
    for name, phase in point["phases"].items():
        assert positive(phase["warm"]), name
        assert len(phase["warm"]["samples"]) == (4 if name == "step" else 2)
        assert name == "step" or positive(phase["processor"]), name
        assert (phase["cold"] is None) == (name == "import")
        assert (phase["peak_bytes"] is None) == (name == "step")
        assert phase["peak_bytes"] is None or 5e7 < phase["peak_bytes"] < 5e9
    phases = point["phases"]
    # The parts are inside the whole: no time is counted twice, none is lost.
    assert sum(phases["step"]["warm"]["samples"]) <= sum(phases["denoise"]["warm"]["samples"])
    parts = [phases[name]["warm"]["samples"] for name in ("encode", "denoise", "decode")]
    assert phases["picture"]["warm"]["samples"] == pytest.approx([sum(run) for run in zip(*parts, strict=True)])
    assert (point["image_tokens"], point["steps"], point["random"]) == (7 * 8, 2, False)
    assert point["text_tokens"] > 20
    assert point["machine"]["threads"] >= 1 and point["machine"]["device"] == "cpu"
    assert "denoise" in run.err and "decode" in run.err  # progress


def test_against_the_reference(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """float32: what the two pipelines do differently is roundings, so they agree to 1e-4, and not by being one."""
    plot = tmp_path / "plots" / "bench.svg"
    words = ["-m", str(model), "--size", "112x128", "--steps", "2", "--runs", "1", "--against", "reference"]
    run = inside(monkeypatch, capfd, *words, "--json", "-o", str(plot))
    assert run.code == 0, run.err
    against = run.json["data"]["points"][0]["against"]
    for race in ("denoise", "decode", "both"):
        assert all(positive(against[race][side]) for side in ("lens", "reference", "ratio", "processor_ratio"))
        (ours,), (theirs,) = against[race]["lens"]["samples"], against[race]["reference"]["samples"]
        assert against[race]["ratio"]["samples"] == [pytest.approx(theirs / ours)]
    pairs = [(error["what"], error["against"]) for error in against["errors"]]
    assert pairs == [("this project", "reference"), ("reference at batch 1", "reference")]
    for error in against["errors"]:
        assert all(0 <= error[where][kind] < 1e-4 for where in ("latent", "picture") for kind in ("max", "rms"))
    assert against["errors"][0]["latent"]["max"] > 0

    root = ET.parse(plot).getroot()
    assert root.tag == f"{SVG}svg"
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"encode", "denoise", "decode", "published pipeline"} <= set(texts)
    titles = [element.text or "" for element in root.iter(f"{SVG}title")]
    assert [title.split(":")[0] for title in titles] == ["encode", "denoise", "decode", "denoise", "decode"]


def test_random_weights_in_bfloat16_are_held_against_float32(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--random", "nano", "--size", "128x128", "--steps", "1", "--dtype", "bfloat16", "--text-tokens", "7"]
    run = inside(monkeypatch, capfd, *words, "--runs", "1", "--against", "reference")
    assert run.code == 0, run.err
    text = run.out.decode()
    assert "random weights, 7 random text tokens, 128x128, 1 step," in text
    assert "24,019,840 parameters" in text and "what else was running is not known" in text
    assert "no text encoder" in text and "encode" not in [line.split("  ")[0] for line in run.lines]
    for row in ("this project - float32", "reference - float32", "reference at batch 1 - reference"):
        (line,) = (line for line in run.lines if line.startswith(row))
        assert 0 < float(line.split()[-4]) < 0.2


def test_a_sweep_measures_every_combination(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", str(model), "--runs", "1", "--sweep", "size=128x128,144x128", "--sweep", "steps=1,2", "--json"]
    run = inside(monkeypatch, capfd, *words)
    assert run.code == 0, run.err
    points = run.json["data"]["points"]
    assert [(p["width"], p["steps"]) for p in points] == [(128, 1), (128, 2), (144, 1), (144, 2)]
    assert all(list(p["phases"]) == [*PHASES, "picture"] for p in points)
    assert [p["phases"]["denoise"]["warm"]["median"] for p in points] != [points[0]["phases"]["denoise"]] * 4


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--random", "lenz"], 2, "did you mean 'lens'"),
        (["--random", "nano", "-m", "nano"], 2, "exclude each other"),
        (["--random", "nano", "-p", "a cat"], 2, "--text-tokens"),
        (["-m", "lens"], 5, "lens"),
        (["--sweep", "colour=red"], 2, "size, ar, base, steps"),
        (["--sweep", "steps="], 2, "KEY=VALUE,VALUE"),
        (["--sweep", "steps=four"], 2, "no steps"),
        (["--sweep", "dtype=float16"], 2, "known: auto, float32, bfloat16"),
        (["--sweep", "steps=1,0"], 2, "outside 1..250"),
        (["--sweep", "steps=1", "--sweep", "steps=2"], 2, "twice"),
        (["--sweep", "size=64x64", "--sweep", "base=128"], 2, "exclude each other"),
        (["--sweep", "steps=" + ",".join(map(str, range(1, 102)))], 2, "101 points"),
        (["--size", "63x64"], 2, "63"),
        (["--runs", "0"], 2, "--runs"),
        (["--against", "comfyui"], 2, "reference"),
        (["-o", "bench.png"], 2, "no SVG"),
        (["--device", "cuda:7", "--random", "nano"], 2, "not available"),
    ],
)
def test_refusals(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = inside(monkeypatch, capfd, *words, "--json")
    assert (run.code, run.json["ok"]) == (code, False)
    assert said in json.dumps(run.json["error"])


def test_a_point_that_fails_leaves_those_before_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], model: Path
) -> None:
    from backend import pipeline
    from backend.errors import OutOfMemoryError

    whole = pipeline.denoise

    def small_only(ready: pipeline.Prepared, *rest: Any) -> Any:
        if ready.grid[1] > 8:
            raise OutOfMemoryError("no memory for that")
        return whole(ready, *rest)

    monkeypatch.setattr(pipeline, "denoise", small_only)
    words = ["-m", str(model), "--runs", "1", "--steps", "1", "--sweep", "size=128x128,144x128", "--json"]
    run = inside(monkeypatch, capfd, *words)
    assert (run.code, run.json["error"]["code"]) == (8, "partial_batch")
    assert [point["width"] for point in run.json["data"]["points"]] == [128]
