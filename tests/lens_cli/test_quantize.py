"""`lens models quantize` and `--quant` from the outside: streams, exit codes, envelopes, and mistaken input."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from backend.picture.images import read_metadata
from tests.lens_cli.cli import Run, command, environment, lens_inside, real_inside


def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> Run:
    """The real program in this process, with the shipped Lens-Nano."""
    return real_inside(monkeypatch, capfd, *words)


def test_quantize_then_draw(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The path on stdout is what `lens gen -m` takes; kept packed or decoded, the pixels are the same."""
    target = tmp_path / "small.gguf"
    done = run(monkeypatch, capfd, "models", "quantize", "nano", "--to", "q4_k", "-o", str(target))
    assert (done.code, done.lines) == (0, [str(target)])
    assert "nano is stored as q8_0 already" in done.err
    assert "80 as Q4_K, 20 as Q8_0" in done.err and "20 matrices as Q8_0: their width is no multiple of 256" in done.err
    sums: list[str] = []
    for quant in ("gguf", "none"):
        words = ("gen", "a red fish", "-m", str(target), "-s", "1", "--steps", "2", "--quant", quant, "--json")
        made = run(monkeypatch, capfd, *words, "-o", str(tmp_path / "pictures") + "/")
        assert made.code == 0, made.err
        row = made.json["data"]["images"][0]
        sums.append(row["pixel_sha256"])
        record = read_metadata(Path(row["path"])).record
        assert record is not None and record["quant"] is None  # nothing was rounded beyond the file
    assert sums[0] == sums[1]


def test_quant_is_recorded_and_rerun(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("gen", "a red fish", "-s", "1", "--steps", "1", "--quant", "int8", "--json", "-o", str(tmp_path) + "/")
    made = run(monkeypatch, capfd, *words)
    assert made.code == 0, made.err
    assert any("rounds a second time" in warning for warning in made.json["warnings"])
    path = made.json["data"]["images"][0]["path"]
    record = read_metadata(Path(path)).record
    assert record is not None and record["quant"] == "int8"
    shown = run(monkeypatch, capfd, "info", path)
    assert "quant           int8" in shown.out.decode()
    again = run(monkeypatch, capfd, "rerun", path, "--verify")
    assert (again.code, again.lines) == (0, ["identical"])


def test_dry_run_says_what_the_linears_take(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    planned = run(monkeypatch, capfd, "gen", "a red fish", "--quant", "nf4", "--dry-run", "--json").json["data"]
    assert planned["quant"] == {"scheme": "nf4", "linear_bytes": 15_564_800 * 9 // 16}
    assert planned["request"]["quant"] == "nf4" and "--quant nf4" in planned["again"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nano", "--to", "q3_k", "-o", "x"), 2, "q3_k"),
        (("nano", "--to", "q4_k"), 2, "--output"),
        (("nano", "-o", "x"), 2, "--to"),
        (("nano", "--to", "q4_k", "-o", "x", "--modulation", "fp8"), 2, "fp8"),
        (("nano", "--to", "q4_k", "-o", "x.safetensors"), 2, "written as .gguf"),
        (("nano", "--to", "nf4", "-o", "x.gguf"), 2, "written as .safetensors"),
        (("nan", "--to", "nf4", "-o", "x"), 2, "no model is called 'nan'"),
        (("./nowhere.gguf", "--to", "nf4", "-o", "x"), 5, "no such file"),
        (("lens", "--to", "nf4", "-o", "x"), 5, "lens is not on this disk"),
        (("text.safetensors", "--to", "nf4", "-o", "x"), 1, "empty file"),
        (("nano", "--to", "q8_0", "-o", "text.safetensors/deep"), 1, "cannot write"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("")
    done = run(monkeypatch, capfd, "models", "quantize", *words)
    assert done.code == code, done.err
    assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["text.safetensors"]


def test_an_unknown_quant_lists_the_known(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    done = lens_inside(monkeypatch, capfd, "gen", "a red fish", "--quant", "q4")
    assert done.code == 2
    for name in ("auto", "none", "fp8", "int8", "nf4", "gguf"):
        assert name in done.err


def test_nothing_is_overwritten_without_force(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "small.gguf"
    target.write_text("mine")
    done = run(monkeypatch, capfd, "models", "quantize", "nano", "--to", "q8_0", "-o", str(target), "--json")
    assert (done.code, target.read_text()) == (1, "mine")
    assert "--force" in done.json["error"]["hint"]
    done = run(monkeypatch, capfd, "models", "quantize", "nano", "--to", "q8_0", "-o", str(target), "--json", "--force")
    assert done.code == 0 and done.json["data"]["bytes"] == target.stat().st_size
    assert done.json["data"]["matrices"] == {"Q8_0": 100, "BF16": 26}


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """A real signal to a real process in the middle of writing."""
    words = ("models", "quantize", "nano", "--to", "q6_k", "-o", str(tmp_path / "out"))
    child = subprocess.Popen(
        command(*words, real=True), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/.lens-*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, err.decode()
    assert out == b"" and b"Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_json_of_a_failure(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(monkeypatch, capfd, "models", "quantize", "lens", "--to", "nf4", "-o", "x", "--json")
    assert json.loads(done.out)["error"]["code"] == "model_missing"
