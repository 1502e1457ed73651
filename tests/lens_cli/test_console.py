"""Words and meters of the command line, without a child process."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from backend.errors import human_bytes
from backend.events import Noticed, PhaseDone, PhaseStarted, StepDone
from backend.types import DType, GenerationRequest, Phase
from backend.wish import Wish
from backend.wishes.command_words import seed_runs
from lens_cli.terminal import progress
from lens_cli.terminal.console import Talk, one_line, printable
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.wording import command_line


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a [red] b\n\tc", "a [red] b\n\tc"),
        ("\x1b[31mx\x07", "�[31mx�"),
        ("\x9b31m", "�31m"),
        ("a\rb", "a�b"),
        ("\udcff", "�"),
        ("Grüße 🎈 \u200d", "Grüße 🎈 \u200d"),
        ("a\u202egnp.exe", "a�gnp.exe"),  # turns the direction of what follows
        ("a\u2066b\u2069", "a�b�"),
        ("a\u2028error: b\u2029", "a�error: b�"),  # begins a line
        ("a\ufeffb\U000e0041", "a�b�"),  # nothing that is seen
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # a script that needs its joiner
    ],
)
def test_printable(text: str, safe: str) -> None:
    assert printable(text) == safe


def test_names_are_bytes_for_a_program_and_harmless_for_a_person(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    name = Path(os.fsdecode(b"\x1b]0;x\x07\xff\nb.png"))
    talk = Talk(command="info")
    talk.data(name)
    assert capfdbinary.readouterr().out == os.fsencode(name) + b"\n"
    monkeypatch.setattr("lens_cli.terminal.console.looking_at_stdout", lambda: True)
    talk.data(name)
    talk.data("a \u202e\x1b[31m cat\nof two lines")
    assert capfdbinary.readouterr().out.decode() == "�]0;x���b.png\na ��[31m cat\nof two lines\n"


def test_one_line() -> None:
    assert one_line(" a\n b\t\tc ") == "a b c"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (123_456, "123 kB"),
        (12_345_678, "12.3 MB"),
        (22.3e9, "22.3 GB"),
        (4e12, "4.0 TB"),
    ],
)
def test_human_bytes(number: float, text: str) -> None:
    assert human_bytes(number) == text


@pytest.mark.parametrize(
    ("seeds", "runs"),
    [((5,), [(5, 5)]), ((5, 6, 7, 9), [(5, 7), (9, 9)]), ((7, 6), [(7, 7), (6, 6)]), ((5, 5), [(5, 5), (5, 5)])],
)
def test_seed_runs(seeds: tuple[int, ...], runs: list[tuple[int, int]]) -> None:
    assert seed_runs(seeds) == runs


def test_command_line_is_quoted() -> None:
    request = GenerationRequest(
        prompt="it's $HOME\n`x`",
        negative_prompt="-a b",
        model="nano",
        seeds=(1, 2, 9),
        width=32,
        height=16,
        steps=3,
        guidance=2.5,
        dtype=DType.float32,
        device="cuda:1",
    )
    assert shlex.split(command_line(request, Wish(), "{date}/x y.png")) == [
        *["lens", "gen", "it's $HOME\n`x`", "--model", "nano", "--size", "32x16", "--steps", "3", "--guidance", "2.5"],
        *["--negative-prompt=-a b", "--seed", "1..2", "--seed", "9", "--dtype", "float32", "--device", "cuda:1"],
        *["--output", "{date}/x y.png"],
    ]


def test_events_are_held_back_to_ten_a_second(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100 + next(clock) * 0.03)
    meter = Meter(talk=Talk(command="gen", stream=True), total=1)
    meter(PhaseStarted(phase=Phase.denoise, total=20, image=0))
    for step in range(1, 21):
        meter(StepDone(phase=Phase.denoise, step=step, total=20, image=0, seconds=0.03))
    meter(PhaseDone(phase=Phase.denoise, seconds=0.6, peak_bytes=5, image=0))
    events = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps[0] == 1 and steps[-1] == 20
    assert 5 <= len(steps) <= 12
    assert meter.summary(1, 2.0) == "1 picture in 2.0 s, 33.33 it/s, peak memory 5 B"


def test_what_is_noticed_is_said_once_a_run(capfd: pytest.CaptureFixture[str]) -> None:
    """A picture that fails begins the pipeline anew, which notices the same again."""
    meter = Meter(talk=Talk(command="gen"), total=2)
    for text in ("one", "two", "one"):
        meter(Noticed(text=text))
    assert capfd.readouterr().err.splitlines() == ["warning: one", "warning: two"]


def test_quiet_and_json_keep_stdout_clean(capfd: pytest.CaptureFixture[str]) -> None:
    talk = Talk(command="x", json=True, quiet=True)
    talk.say("no")
    talk.data("no")
    talk.warn("kept")
    talk.result({"a": 1})
    out, err = capfd.readouterr()
    assert json.loads(out)["warnings"] == ["kept"] and err == ""
