"""Ctrl-C: once after the step, twice at once; finished files stay whole and nothing else stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.errors import CancelledError
from lens_cli.terminal.console import Talk
from lens_cli.work.train.data import call
from tests.lens_cli.cli import command, environment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("gen", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def wait_for_denoising(child: subprocess.Popen[str]) -> None:
    assert child.stderr is not None
    while "load transformer" not in (line := child.stderr.readline()):
        assert line, "the child ended early"
    time.sleep(0.1)


def test_once_stops_after_the_step_and_keeps_finished_pictures() -> None:
    child = start("slow fish", "-s", "1..50", "--steps", "4")
    assert child.stdout is not None
    first = child.stdout.readline().strip()
    child.send_signal(signal.SIGINT)
    rest, talk = child.communicate(timeout=120)
    assert child.returncode == 130
    made = [first, *rest.split()]
    assert sorted(path.name for path in Path().iterdir()) == sorted(made)  # nothing half-written
    for path in made:
        Image.open(path).load()
    assert "error: stopped: " in talk and f"{len(made)} of 50 pictures finished" in talk
    assert "Traceback" not in talk


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_end_a_process_end_as_ctrl_c(number: signal.Signals) -> None:
    child = start("slow fish", "-s", "1..50", "--steps", "4")
    assert child.stdout is not None
    first = child.stdout.readline().strip()
    child.send_signal(number)
    rest, talk = child.communicate(timeout=120)
    made = [first, *rest.split()]
    assert child.returncode == 130 and f"{len(made)} of 50 pictures finished" in talk
    assert sorted(path.name for path in Path().iterdir()) == sorted(made)


def test_a_press_in_the_last_shard_of_a_stage_keeps_the_next_from_beginning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[str] = []

    def press(*shards: Any, **how: Any) -> None:
        begun.append("score")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(call, "run_shards", press)
    one = call.Call(tmp_path, (), "local", 1, False, Talk(command="train data run"))
    with pytest.raises(CancelledError, match="the shards of score are finished"):
        for name in ("score", "select"):
            call.run_todo(one, name, lambda shard: None, [0])
    assert begun == ["score"]


def test_twice_stops_at_once() -> None:
    child = start("hang", "--steps", "200")
    wait_for_denoising(child)
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None  # the fake ignores the polite way
    child.send_signal(signal.SIGINT)
    _, talk = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in talk and talk.rstrip().endswith("error: stopped")
    assert list(Path().iterdir()) == []


def test_before_the_first_picture_no_folder_stays() -> None:
    child = start("slow fish", "--steps", "200", "-o", "new/inner/")
    wait_for_denoising(child)
    assert list(Path().iterdir()) == []
    child.send_signal(signal.SIGINT)
    _, talk = child.communicate(timeout=60)
    assert child.returncode == 130 and "0 of 1 pictures finished" in talk
    assert list(Path().iterdir()) == []


# ------------------------------------------------------------------------------- at one chosen moment, not by the clock

AT_AN_IMPORT = """
import os, signal, sys

class Press:
    def __init__(self, module):
        self.module = module

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press(sys.argv.pop(1)))
from lens_cli.entry import main
main()
"""
# Before the callback's own `try`: whatever is raised there, ctypes prints and drops.
IN_LLAMAS_CALLBACK = """
import os, signal
from backend.text.llama_library import Context

def press(self, stop, data):
    Context._asked = asked
    os.kill(os.getpid(), signal.SIGINT)
    return asked(self, stop, data)

asked, Context._asked = Context._asked, press
from lens_cli.entry import main
main()
"""


def pressed(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A child that sends itself Ctrl-C once."""
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )


AT_ITS_END = """
import atexit, os, signal

atexit.register(lambda: os.kill(os.getpid(), signal.NAME))
from lens_cli.entry import main
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_when_all_is_said_the_code_stays_and_nothing_is_printed(number: str) -> None:
    """What comes while the interpreter tidies up."""
    run = pressed(AT_ITS_END.replace("NAME", number), "config", "path")
    assert (run.returncode, run.stderr) == (0, "") and run.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "command", "words"),
    [
        ("typer", "gen", ["a cat"]),  # before there is a command line
        ("lens_cli.commands.gen", "gen", ["a cat"]),
        ("lens_cli.work.bench", "bench", []),
        ("lens_cli.work.eval", "eval nano", ["--limit", "7"]),
        ("lens_cli.work.doctor", "doctor", []),
        ("lens_cli.work.models.quantize", "models quantize", ["nano", "--to", "q4_k", "-o", "x.gguf"]),
    ],
)
def test_is_answered_in_every_command(module: str, command: str, words: list[str]) -> None:
    run = pressed(AT_AN_IMPORT, module, *command.split(), *words)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "error: stopped\n")
    run = pressed(AT_AN_IMPORT, module, *command.split(), *words, "--json")
    assert (run.returncode, run.stderr) == (130, "")
    answer = json.loads(run.stdout)
    assert answer["command"] == command
    assert answer["error"] == {"code": "cancelled", "message": "stopped", "hint": None}


@pytest.mark.nano
@pytest.mark.parametrize("words", [["refine", "two cats"], ["gen", "four dogs", "--reasoner", "local"]])
def test_while_the_local_reasoner_reads(words: list[str]) -> None:
    run = pressed(IN_LLAMAS_CALLBACK, *words, "--json")
    assert run.returncode == 130
    assert "ignored" not in run.stderr and "Traceback" not in run.stderr
    error = json.loads(run.stdout)["error"]
    assert error["code"] == "cancelled" and error["message"].startswith("stopped")
    assert list(Path().iterdir()) == []
