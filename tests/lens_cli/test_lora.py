"""`--lora` from the outside: flags, settings, records, `rerun`, and one real picture with Lens-Nano.

The files are made here with literal keys; most tests run with the fake engine, whose pixels depend on the LoRAs'
hashes and scales. `tests/backend/lora/test_lora.py` judges what a LoRA does to the weights.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backend import presets
from backend.picture.images import read_metadata
from backend.types import LoraMode, LoraUse
from tests.lens_cli.cli import Run, lens, lens_inside

DIM = presets.get("nano").params.dit.dim
WORDS = ["gen", "a red circle", "-s", "3", "--steps", "2", "--base", "128"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`lens` in this process with the fake engine."""
    return lambda *words: lens_inside(monkeypatch, capfd, *words)


def make(path: str | Path, more: Mapping[str, torch.Tensor] | None = None, *, seed: int = 0) -> Path:
    """A LoRA that Lens-Nano feels: rank 4 on two linears of every block."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for block in range(presets.get("nano").params.dit.num_layers):
        for linear, outputs in (("attn.img_qkv", 3 * DIM), ("img_mod.1", 6 * DIM)):
            stem = f"diffusion_model.transformer_blocks.{block}.{linear}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, DIM, generator=generator) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.1
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **(more or {})}, path, {"rank": "4", "alpha": "4"})
    return Path(path).absolute()


def record(name: str) -> dict[str, Any]:
    found = read_metadata(Path(name)).record
    assert found is not None
    return dict(found)


def test_record_info_and_rerun(folder: Path) -> None:
    path = make("a=b.safetensors")
    run = lens(*WORDS, "--lora", "a=b.safetensors=0.8", "--lora", str(path) + "=-1", "-o", "x.png")
    assert run.code == 0 and "LoRA a=b 0.8, LoRA a=b -1" in run.err
    (first, second) = record("x.png")["loras"]
    assert first["name"] == "a=b.safetensors" and first["scale"] == 0.8 and first["mode"] == "fused"
    assert second["scale"] == -1.0 and len(first["sha256"]) == 64
    assert str(folder) not in json.dumps(record("x.png"))  # no path of this machine
    shown = lens("info", "x.png").out.decode()
    assert "a=b.safetensors 0.8, fused" in shown and first["sha256"][:12] in shown
    assert "a=b.safetensors -1.0" in lens("info", "x.png", "--json").json["data"]["images"][0]["parameters"]
    again = lens("rerun", "x.png", "-o", "y.png")
    assert again.code == 0 and Image.open("y.png").tobytes() == Image.open("x.png").tobytes()
    assert record("y.png")["loras"] == record("x.png")["loras"]
    typed = lens(*shlex.split(run.err.splitlines()[-1])[1:])  # the last line, as a person would paste it
    assert typed.lines == ["x-1.png"] and Image.open("x-1.png").tobytes() == Image.open("x.png").tobytes()
    assert lens("rerun", "x.png", "--verify").lines == ["identical"]
    assert lens("rerun", "x.png", "--verify", "--lora", "a=b.safetensors").code == 2
    other = lens("rerun", "x.png", "--lora", "a=b.safetensors=0.3", "-o", "z.png")
    assert other.code == 0 and Image.open("z.png").tobytes() != Image.open("x.png").tobytes()
    assert [use["scale"] for use in record("z.png")["loras"]] == [0.3]


def test_rerun_without_the_file(folder: Path) -> None:
    path = make("x.safetensors")
    assert lens(*WORDS, "--lora", "x.safetensors=0.8", "-o", "x.png").code == 0
    moved = path.rename(folder / "elsewhere.safetensors")
    run = lens("rerun", "x.png")
    sha256 = record("x.png")["loras"][0]["sha256"]
    assert run.code == 2 and str(sha256) in run.err and "--lora PATH=0.8" in run.err
    assert lens("rerun", "x.png", "--lora", f"{moved}=0.8", "--dry-run").code == 0
    (folder / "home/data/loras").mkdir(parents=True)
    moved.rename(folder / "home/data/loras/renamed.safetensors")
    assert lens("rerun", "x.png", "-o", "y.png").code == 0
    assert Image.open("y.png").tobytes() == Image.open("x.png").tobytes()


def test_a_name_and_settings(folder: Path, inside: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    sky = make(folder / "home/data/loras/sky.safetensors")
    make(folder / "home/data/loras/ink.safetensors", seed=1)

    def loras(*words: str) -> list[tuple[str, float, str]]:
        uses = inside(*WORDS, "--dry-run", "--json", *words).json["data"]["request"]["loras"]
        return [(Path(use["path"]).name, use["scale"], use["mode"]) for use in uses]

    assert loras() == []
    assert loras("--lora", "sky=0.8") == [("sky.safetensors", 0.8, "auto")]
    assert loras("--lora", "sky", "--lora-mode", "live") == [("sky.safetensors", 1.0, "live")]
    Path("lens.toml").write_text('[generate]\nloras = ["sky=0.5", "ink"]\nlora_mode = "fused"\n')
    assert loras() == [("sky.safetensors", 0.5, "fused"), ("ink.safetensors", 1.0, "fused")]
    monkeypatch.setenv("LENS_GENERATE__LORAS", os.pathsep.join(("ink=2", f"{sky}=-1")))
    assert loras() == [("ink.safetensors", 2.0, "fused"), ("sky.safetensors", -1.0, "fused")]
    assert loras("--lora", "ink=0.1") == [("ink.safetensors", 0.1, "fused")]  # a flag replaces them all
    for wrong in ("loras = 'sky'", "loras = [1]"):
        Path("lens.toml").write_text(f"[generate]\n{wrong}\n")
        run = inside(*WORDS, "--dry-run")
        assert run.code == 2 and "a list of texts" in run.err


def test_dry_run_counts_its_bytes(inside: Callable[..., Run]) -> None:
    path = make("x.safetensors")
    plain = inside(*WORDS, "--dry-run", "--json").json["data"]
    data = inside(*WORDS, "--lora", "x.safetensors=0.5", "--dry-run", "--json").json["data"]
    row = data["files"][-1]
    assert (row["component"], row["path"], row["bytes"]) == ("lora", str(path), path.stat().st_size)
    assert data["total_bytes"] == plain["total_bytes"] + path.stat().st_size
    assert f"--lora {path}=0.5" in data["again"]
    assert "x.safetensors" in inside(*WORDS, "--lora", "x.safetensors=0.5", "--dry-run").err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--lora", "absent=0.8"], 2, "no LoRA is called 'absent'"),
        (["--lora", "/nowhere/x.safetensors"], 2, "no LoRA is called '/nowhere/x.safetensors'"),
        (["--lora", "x.safetensors=inf"], 2, "outside -100..100"),
        (["--lora", "foreign.safetensors"], 1, "no key fits a Lens transformer"),
        (["--lora", "x.pt"], 1, "pickle"),
        (["--lora", "lokr.safetensors", "--lora-mode", "live"], 2, "LoKr updates exist as whole matrices only"),
        (["--lora", "x.safetensors", "--lora-mode", "molten"], 2, "molten"),
    ],
)
def test_mistakes(words: list[str], code: int, says: str, inside: Callable[..., Run]) -> None:
    make("x.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.lora_A.weight": torch.zeros(2, 2)}, "foreign.safetensors")
    stem = "transformer_blocks.0.attn.to_out.0"
    save_file({f"{stem}.lokr_w1": torch.zeros(1, 1), f"{stem}.lokr_w2": torch.zeros(DIM, DIM)}, "lokr.safetensors")
    torch.save({}, "x.pt")
    for more in ([], ["--dry-run"]):
        run = inside(*WORDS, *words, *more)
        assert run.code == code and says in " ".join(run.err.split()) and run.out == b"", run.err


def test_what_is_left_aside_is_said_once() -> None:
    make("x.safetensors", {"lora_te_text_model": torch.zeros(1), "blocks.0.lora_A.weight": torch.zeros(1, 1)})
    run = lens(*WORDS, "-n", "2", "--lora", "x.safetensors")
    assert run.code == 0 and len(run.lines) == 2
    assert run.err.count("blocks.0.lora_A.weight") == 1 and run.err.count("lora_te_text_model") == 1


def test_a_record_that_was_tampered_with() -> None:
    from backend.errors import FileError
    from backend.picture.metadata import wish_from

    make("x.safetensors")
    assert lens(*WORDS, "--lora", "x.safetensors", "-o", "x.png").code == 0
    good = record("x.png")
    uses = wish_from(good, "x").loras
    assert uses is not None and len(uses) == 1 and isinstance(use := uses[0], LoraUse)
    assert (use.path, use.scale, use.mode) == ("x.safetensors", 1.0, LoraMode.fused)
    assert wish_from({key: value for key, value in good.items() if key != "loras"}, "x").loras == ()
    entry = {"name": "x.safetensors", "sha256": "0", "scale": 1.0, "mode": "fused"}
    for bad in (
        "x", [1], [{**entry, "name": "../x"}], [{**entry, "scale": "1"}], [{**entry, "mode": "auto"}],
        [{**entry, "sha256": None}],
    ):  # fmt: skip
        with pytest.raises(FileError, match="damaged"):
            wish_from({**good, "loras": bad}, "x")


# ------------------------------------------------------------------------------------------------------- the real one


def here(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """The real command in this process: importing torch for every picture would take most of the time."""
    from lens_cli.app import main

    monkeypatch.setattr(sys, "argv", ["lens", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, words


@pytest.mark.nano
def test_nano_feels_it(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    make("x.safetensors")

    def picture(name: str, *more: str) -> bytes:
        here(monkeypatch, *WORDS, "--reasoner", "off", "-o", name, *more)
        with Image.open(name) as image:
            return image.tobytes()

    plain = picture("plain.png")
    assert picture("none.png", "--lora", "x.safetensors=0") == plain
    with_it = picture("with.png", "--lora", "x.safetensors=0.8")
    assert with_it != plain
    live = picture("live.png", "--lora", "x.safetensors=0.8", "--lora-mode", "live")
    # Two orders of the same float32 sums; modulation is fused in both.
    assert max(abs(a - b) for a, b in zip(live, with_it, strict=True)) <= 2
    assert [record(name)["loras"][0]["mode"] for name in ("with.png", "live.png")] == ["fused", "live"]
    for name in ("with.png", "live.png"):
        capfd.readouterr()
        here(monkeypatch, "rerun", name, "--verify")
        assert capfd.readouterr().out == "identical\n"
