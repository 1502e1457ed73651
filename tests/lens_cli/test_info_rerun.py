"""`lens info`, `lens rerun [--verify]` and `lens doctor` from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.errors import UsageError
from backend.picture.images import read_metadata
from tests.lens_cli.cli import lens, lens_inside, recorded


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(name: str = "a.png", *words: str) -> None:
    assert lens("gen", "a [red] fish", "-s", "5", "--steps", "2", "--base", "128", "-o", name, *words).code == 0


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_info(name: str) -> None:
    make(name)
    text = lens("info", name).out.decode()
    assert "a [red] fish" in text and "nano" in text and "trainedAlgorithmicMedia" in text
    assert [line.split() for line in text.splitlines() if "sampler" in line] == [["sampler", "euler"]]
    row = lens("info", name, "--json").json["data"]["images"][0]
    assert row["record"]["seed"] == 5 and row["generator"] == "lens" and row["width"] == 128
    assert row["fields"]["Seed"] == "5"


def test_info_of_a_foreign_picture_is_made_harmless() -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", "a \x1b]0;title\x07 cat\nSteps: 2, Sampler: Euler, CFG scale: 1, Seed: 3, Size: 8x8")
    Image.new("RGB", (8, 8)).save("b.png", pnginfo=chunks)
    run = lens("info", "b.png")
    assert run.code == 0 and b"\x1b" not in run.out and b"\x07" not in run.out
    assert "AUTOMATIC1111" in run.out.decode() and "cat" in run.out.decode()


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_info_of_no_picture(content: bytes) -> None:
    Path("b.png").write_bytes(content)
    run = lens("info", "b.png")
    assert run.code == 1 and run.out == b""
    assert run.err.startswith("error: b.png is no picture")
    answer = lens("info", "b.png", "--json").json
    assert answer["error"]["code"] == "file" and answer["data"] is None


def test_info_of_several() -> None:
    make()
    run = lens("info", "a.png", "absent.png")
    assert run.code == 8 and "a [red] fish" in run.out.decode() and "absent.png does not exist" in run.err
    assert lens("info", "absent.png", "absent.png").code == 1


def test_rerun_makes_the_same_pixels() -> None:
    make()
    run = lens("rerun", "a.png")
    assert run.code == 0
    again = run.lines[0]
    assert again == "a-red-fish-5.png"
    assert Image.open("a.png").tobytes() == Image.open(again).tobytes()
    first, second = read_metadata(Path("a.png")).record, read_metadata(Path(again)).record
    assert first is not None and second is not None
    assert second["parent_id"] == first["id"] and second["id"] != first["id"]
    assert recorded("a.png") == recorded(again)


def test_rerun_with_overrides() -> None:
    make()
    words = ["-s", "9", "--steps", "3", "-p", "a blue fish", "--ar", "16:9", "--base", "256", "-o", "b.png"]
    assert lens("rerun", "a.png", *words).lines == ["b.png"]
    request = recorded("b.png")
    assert (request.seeds, request.steps, request.prompt) == (("9",), 3, "a blue fish")
    assert (request.width, request.height) == (336, 192)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--base", "384"], (512, 288)),  # 16:9 as it was, though 336x192 is 7:4
        (["--ar", "1:1"], (256, 256)),  # the base as it was
        (["--ar", "4:3", "--base", "128"], (144, 112)),
        (["--size", "320x192"], (320, 192)),
    ],
)
def test_half_of_a_size_keeps_the_other_half(words: list[str], size: tuple[int, int]) -> None:
    assert lens("gen", "a red fish", "-o", "a.png", "--ar", "16:9", "--base", "256", "-s", "5").code == 0
    request = lens("rerun", "a.png", *words, "--dry-run", "--json").json["data"]["request"]
    assert (request["width"], request["height"]) == size


def test_other_weights_of_the_same_name_are_told() -> None:
    """A model that was trained on keeps its name: its pictures are others."""
    make()
    assert "made with another" not in lens("rerun", "a.png", "--dry-run").err
    with Image.open("a.png") as image:
        record = json.loads(image.info["lens"])
        pixels = image.copy()
    record["model"]["sha256"]["transformer"] = "f" * 64
    chunks = PngInfo()
    chunks.add_itxt("lens", json.dumps(record))
    pixels.save("b.png", pnginfo=chunks)
    for words in (["--dry-run"], []):
        run = lens("rerun", "b.png", *words)
        assert run.code == 0
        assert "warning: b.png was made with another transformer than nano has now" in run.err


def test_rerun_is_not_bent_by_settings() -> None:
    make()
    Path("lens.toml").write_text(
        "model = 'lens'\n[generate]\nsteps = 9\nguidance = 2\nnegative_prompt = 'x'\nar = '2:1'\n"
    )
    request = lens("rerun", "a.png", "--dry-run", "--json").json["data"]["request"]
    before = recorded("a.png")
    for key in ("model", "steps", "guidance", "negative_prompt", "width", "height"):
        assert request[key] == getattr(before, key)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_verify_the_same(name: str) -> None:
    make(name)
    run = lens("rerun", name, "--verify")
    assert (run.code, run.lines) == (0, ["identical"])
    assert lens("rerun", name, "--verify", "--json").json["data"]["identical"] is True
    assert [path.name for path in Path().iterdir()] == [name]  # nothing is saved


def test_verify_tells_what_changed() -> None:
    make()
    with Image.open("a.png") as image:
        record = json.loads(image.info["lens"])
        pixels = image.copy()
    record["steps"] = 3  # the fake's pixels depend on it
    record["versions"]["torch"] = "1.0"
    record["model"]["sha256"]["transformer"] = "f" * 64
    chunks = PngInfo()
    chunks.add_itxt("lens", json.dumps(record))
    pixels.save("b.png", pnginfo=chunks)
    run = lens("rerun", "b.png", "--verify")
    assert (run.code, run.lines) == (1, ["different"])
    assert "versions.torch: 1.0 then, 0.0-fake now" in run.err
    assert "model.sha256.transformer" in run.err and "PSNR" in run.err
    answer = lens("rerun", "b.png", "--verify", "--json").json
    assert answer["ok"] is False
    assert set(answer["data"]["changed"]) == {"versions.torch", "model.sha256.transformer"}
    assert 0 < answer["data"]["psnr_db"] < 20


def resave(source: str, name: str, pixels: Image.Image, **options: Any) -> None:
    """Other pixels with the metadata of `source`, as an image editor keeps it."""
    with Image.open(source) as image:
        kept = {key: image.info[key] for key in ("exif", "xmp") if key in image.info}
        chunks = PngInfo()
        if "lens" in image.info:
            chunks.add_itxt("lens", image.info["lens"])
    pixels.save(name, **({"pnginfo": chunks} if name.endswith(".png") else kept), **options)


def brighter(name: str) -> Image.Image:
    with Image.open(name) as image:
        return image.convert("RGB").point([min(255, value + 40) for value in range(256)] * 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", dict[str, Any]()), ("a.webp", {"lossless": True})],
)
def test_verify_sees_an_edited_file(name: str, options: dict[str, Any]) -> None:
    """The recorded pixels come out again, but the file no longer holds them, and its format cannot have lost them."""
    make(name)
    edited = f"b{Path(name).suffix}"
    resave(name, edited, brighter(name), **options)
    run = lens("rerun", edited, "--verify")
    assert (run.code, run.lines) == (1, ["different"])
    assert "changed since it was made" in run.err and "the recorded pixels came out again" in run.err
    answer = lens("rerun", edited, "--verify", "--json").json
    assert answer["ok"] is False and answer["data"]["identical"] is False
    assert answer["data"]["recorded_pixels_again"] is True and answer["data"]["file_edited"]
    resave(name, edited, Image.open(name).convert("RGB"), **options)  # saved again as it was: nothing is lost
    assert lens("rerun", edited, "--verify").lines == ["identical"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_verify_sees_another_size(name: str) -> None:
    make(name)
    resized = f"b{Path(name).suffix}"
    with Image.open(name) as image:
        resave(name, resized, image.convert("RGB").resize((64, 64)))
    run = lens("rerun", resized, "--verify")
    assert (run.code, run.lines) == (1, ["different"])
    assert "it is 64x64, and 128x128 was recorded" in run.err


def test_verify_lets_a_lossy_format_round() -> None:
    """Nothing tells a brighter JPEG from one that rounds: the record decides, as it does for lens's own."""
    make("a.jpg")
    resave("a.jpg", "b.jpg", brighter("a.jpg"), quality=95)
    answer = lens("rerun", "b.jpg", "--verify", "--json").json
    assert (answer["data"]["identical"], answer["data"]["file_is_as_recorded"]) == (True, False)


@pytest.mark.parametrize(
    ("name", "words", "saved"),
    [
        ("a.webp", [], "a-red-fish-5.webp"),
        ("a.jpg", [], "a-red-fish-5.jpg"),
        ("a.png", [], "a-red-fish-5.png"),
        ("a.webp", ["--format", "jpeg"], "a-red-fish-5.jpg"),
        ("a.webp", ["-o", "b.png"], "b.png"),
        ("a.webp", ["-o", "b"], "b.webp"),
    ],
)
def test_rerun_keeps_the_file_format(name: str, words: list[str], saved: str) -> None:
    """Also where the settings have another."""
    make(name)
    Path("lens.toml").write_text("[output]\nformat = 'jpeg'\n" if name != "a.jpg" else "[output]\nformat = 'webp'\n")
    assert lens("rerun", name, *words).lines == [saved]
    with Image.open(saved) as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[saved.rsplit(".")[1]]


def test_verify_refuses_changes() -> None:
    make()
    run = lens("rerun", "a.png", "--verify", "--steps", "3")
    assert run.code == 2 and "nothing may be changed" in run.err
    run = lens("rerun", "a.png", "--verify", "--dry-run")
    assert run.code == 2 and "drop one of the two" in run.err


def test_rerun_of_what_lens_did_not_make() -> None:
    Image.new("RGB", (8, 8)).save("b.png")
    run = lens("rerun", "b.png")
    assert run.code == 1 and "holds no lens record" in run.err and "hint: " in run.err


def test_rerun_of_an_unknown_model_asks_where_it_is() -> None:
    make()
    with Image.open("a.png") as image:
        record = json.loads(image.info["lens"])
    record["model"]["name"] = "my-model"
    chunks = PngInfo()
    chunks.add_itxt("lens", json.dumps(record))
    Image.new("RGB", (8, 8)).save("b.png", pnginfo=chunks)
    run = lens("rerun", "b.png")
    assert run.code == 2 and "my-model" in run.err and "-m PATH" in run.err


def test_a_pictures_own_path_is_opened_only_where_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Who wrote the picture would choose which files of this machine are opened."""
    asked: list[str] = []

    def record_only(name: str) -> Any:
        asked.append(name)
        raise UsageError(f"{name} was opened")

    assert lens_inside(monkeypatch, capfd, "gen", "a fish", "-s", "5", "--steps", "2", "-o", "a.png").code == 0
    (tmp_path / "weights").mkdir()
    with Image.open("a.png") as image:
        record = json.loads(image.info["lens"])
    for model in (str(tmp_path / "weights"), "weights", "../weights"):
        record["model"]["name"] = model
        chunks = PngInfo()
        chunks.add_itxt("lens", json.dumps(record))
        Image.new("RGB", (8, 8)).save("b.png", pnginfo=chunks)
        monkeypatch.setattr("backend.requests.find_model", record_only)
        for words in (["--dry-run"], ["--verify"]):
            run = lens_inside(monkeypatch, capfd, "rerun", "b.png", *words)
            assert run.code == 2 and repr(model) in run.err and "--trust-paths" in run.err and asked == []
        run = lens_inside(monkeypatch, capfd, "rerun", "b.png", "--trust-paths")
        assert run.code == 2 and asked == [model]
        asked.clear()


def test_a_lora_beside_a_picture_is_opened_only_where_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lens_inside(monkeypatch, capfd, "gen", "a fish", "-s", "5", "--steps", "2", "-o", "a.png").code == 0
    Path("x.safetensors").write_bytes(b"no LoRA")
    opened: list[Path] = []

    def look(path: Path) -> str:
        opened.append(path)
        return "0" * 64

    monkeypatch.setattr("backend.lora.names.lora_sha256", look)
    with Image.open("a.png") as image:
        record = json.loads(image.info["lens"])
    record["loras"] = [{"name": "x.safetensors", "sha256": "0" * 64, "scale": 1.0, "mode": "fused"}]
    chunks = PngInfo()
    chunks.add_itxt("lens", json.dumps(record))
    Image.new("RGB", (8, 8)).save("b.png", pnginfo=chunks)
    run = lens_inside(monkeypatch, capfd, "rerun", "b.png", "--dry-run")
    assert run.code == 2 and "'x.safetensors'" in run.err and opened == []
    run = lens_inside(monkeypatch, capfd, "rerun", "b.png", "--dry-run", "--trust-paths")
    assert run.code == 1 and "x.safetensors: cut short" in run.err  # it was opened
    assert opened == [Path("x.safetensors").absolute()]


def test_doctor() -> None:
    answer = lens("doctor", "--no-torch", "--json", real=True).json
    assert answer["ok"]
    data = answer["data"]
    assert data["system"]["cores"] >= 1 and data["system"]["memory"] > 10**8
    assert data["disk"]["free_in_working_folder"] > 0
    assert data["packages"]["torch"] != "missing"
    assert "not on this disk" in data["models"]["lens"]
    assert "Python".lower() in lens("doctor", "--no-torch", real=True).out.decode()


def test_doctor_survives_broken_settings() -> None:
    Path("lens.toml").write_text("nonsense = 1")
    assert "nonsense" in lens("doctor", "--no-torch", "--json", real=True).json["data"]["settings"]["problem"]


def test_version_and_help() -> None:
    assert lens("--version").lines[0].startswith("lens 0.")
    for words in ([], ["--help"], ["gen", "-h"], ["rerun", "--help"], ["info", "--help"]):
        run = lens(*words)
        assert run.code == 0 and b"Usage" in run.out
