"""Command lines with hostile values: an exit code of the README, one line, no internal error.

The real parser, the real requests and a fake engine in this process; the words are drawn, so that another run of
`make fuzz` has others. What would listen, draw for minutes or open an app is left out.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.fuzz.mutants import HOSTILE
from tests.lens_cli.cli import lens_inside

SLOW = 20.0  # seconds of processor time for one line
CODES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 130)
MINUTES = float(os.environ.get("LENS_FUZZ_MINUTES") or 0)  # here: in a test the environment is without LENS_…
LINES = int(60 * MINUTES) or 10
GOOD = ("a cat", "nano", "1", "2.5", "out/", "x.png", "16:9", "256", "384x256", "x.safetensors", "steps", "-", ".")
VALUES = (
    *(value.decode("utf-8", "surrogateescape").replace("\0", "?") for value in HOSTILE if len(value) < 10_000),
    *(
        "\x1b]0;x\x07",
        "\udcff",
        "loop",
        "/dev/full/x",
        "/proc/self/mem",
        "{seed:c}",
        "{seed:>9999999999}",
        "{0.a}",
        "~",
    ),
    *(
        "x" * 300,
        "-" * 300,
        "1..999999999999",
        "5..1",
        "0x10",
        "1_000",
        "nan",
        "inf",
        "-inf",
        "1e9",
        "'",
        "$(id)",
        "%s",
    ),
)
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gen --dry-run", ("-s", "-n", "-o", "--steps", "-g", "--ar", "--base", "--size", "-m", "--lora", "--init",
                       "--mask", "--hires", "--style", "--format", "--quality", "--device", "--vram",
                       "--negative-prompt",
                       "--prompts", "-f", "--variations", "--around", "--amount", "--rl-strength", "--sampler")),
    ("grid --dry-run", ("-x", "-y", "-o", "-s", "-m", "--steps")),
    ("rerun --dry-run", ("-s", "-o", "-m", "--lora", "--steps", "--ar", "-p")),
    ("info", ("--json",)),
    ("refine --dry-run", ("-m", "--effort", "--system-prompt", "-f")),
    ("config set", ()), ("config get", ()), ("cache show", ()), ("models show", ()), ("models verify", ("--quick",)),
    ("models list", ()), ("models rm", ()), ("models pull --dry-run", ("--from",)),
    ("history list", ("-n", "--search")),
    ("history show", ()), ("history tree", ()), ("help", ()), ("train pretrain --dry-run", ("--recipe", "--set")),
    ("train status", ()), ("train data scan --dry-run", ("--set", "--workers", "--engine")),
    ("train data run --dry-run", ("--set",)), ("train data select", ("--set",)), ("train data report", ("--set",)),
)  # fmt: skip


def draw(chance: random.Random) -> list[str]:
    command, flags = chance.choice(COMMANDS)
    words = command.split()

    def value() -> str:
        return chance.choice(VALUES if chance.random() < 0.7 else GOOD)

    for _ in range(chance.randint(0, 3)):
        words += [chance.choice(flags), value()] if flags and chance.random() < 0.7 else [value()]
    return words


def test_any_command_line_ends_in_a_code_of_the_readme_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**9) if MINUTES else 1
    chance = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("x.png")
    Path("loop").symlink_to("loop")
    codes = Counter[int]()
    for _ in range(LINES):
        words = draw(chance)
        began = time.process_time()
        run = lens_inside(monkeypatch, capfd, *words)
        told = f"{words!r}\n{run.err[:2000]}"
        assert time.process_time() - began < SLOW, told
        codes[run.code] += 1
        assert run.code in CODES, told
        assert "internal error" not in run.err and "Traceback" not in run.err and "\x1b" not in run.err, told
        errors = [line for line in run.err.splitlines() if line.startswith("error: ")]
        answered = "--json" in words  # where the error is in the answer
        assert len(errors) <= 1 and (run.code == 0 or errors or answered), told
    print(f"{codes.total():,} command lines from seed {seed}, exit codes {dict(sorted(codes.items()))}")
