"""`lens gen` from the outside: streams, exit codes, names, JSON, bad input."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend import presets
from tests.lens_cli.cli import lens, lens_inside, recorded

NANO = presets.get("nano")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_stdout_is_paths_and_stderr_is_talk() -> None:
    run = lens("gen", "three red balloons over a green hill", "--ar", "16:9", "--base", "256", "-n", "2", "-s", "5")
    assert run.code == 0
    assert run.lines == ["three-red-balloons-over-a-green-hill-5.png", "three-red-balloons-over-a-green-hill-6.png"]
    assert files() == sorted(run.lines)
    assert "336x192" in run.err  # the size that was chosen
    assert "it/s" in run.err and "peak memory" in run.err and "denoise 2/2" in run.err
    with Image.open(run.lines[0]) as image:
        assert image.size == (336, 192)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["a fish", "--init", "fsh.png"], "did you mean fish.png?"),
        (["a fish", "--init", "fish.png", "--mask", "sub/mask.png"], "there is no folder sub"),
        (["a fish", "--init", "qqq"], "a picture is meant: PNG, JPEG or WebP"),
        (["--prompts", "prompt.txt"], "did you mean prompts.txt?"),
        (["--prompts", "qqq"], "a file of prompts, one a line"),
        (["-f", "promts.txt"], "did you mean prompts.txt?"),
        (["-f", "qqq"], "-f takes a text file"),
    ],
)
def test_a_file_that_is_not_there_is_answered_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    Image.new("RGB", (64, 64)).save("fish.png")
    Path("prompts.txt").write_text("a fish\n")
    run = lens_inside(monkeypatch, capfd, "gen", *words)
    assert (run.code, run.out) == (1, b"") and f"hint: {hint}" in run.err, run.err
    assert files() == ["fish.png", "prompts.txt"]


def test_the_name_of_a_file_is_not_drawn(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, meant in (("a fish.png", "--init 'a fish.png'"), ("x.TXT", "--prompts x.TXT"), ("y.gguf", "-m y.gguf")):
        Path(name).touch()
        run = lens_inside(monkeypatch, capfd, "gen", name)
        assert run.code == 2 and meant in run.err and len(run.err.splitlines()) == 2, run.err
    Path("a fish.png").unlink()
    assert lens_inside(monkeypatch, capfd, "gen", "a fish.png", "--dry-run").code == 0  # words, where no file is
    assert lens_inside(monkeypatch, capfd, "gen", "-p", "x.TXT", "--dry-run").code == 0


def test_a_model_that_is_not_here_leaves_no_folder_behind() -> None:
    run = lens("gen", "x", "-m", "lens-turbo", "-o", "new/", real=True, LENS_HOME="empty")
    assert run.code == 5 and "pull" in run.err
    assert not Path("new").exists()


def test_last_line_makes_the_same_picture() -> None:
    first = lens("gen", 'it\'s a [red] "ball" $HOME `x`', "--steps", "3", "--negative-prompt", "-blur", "-o", "a.png")
    words = shlex.split(first.err.splitlines()[-1])
    assert words[0] == "lens"
    second = lens(*words[1:])
    assert second.lines == ["a-1.png"]
    assert recorded("a.png") == recorded("a-1.png")
    assert Image.open("a.png").tobytes() == Image.open("a-1.png").tobytes()


@pytest.mark.parametrize(
    ("words", "stdin", "prompt"),
    [
        (["a", "red", "ball"], None, "a red ball"),
        (["-p", "a red ball"], None, "a red ball"),
        (["--prompt=-x"], None, "-x"),
        (["-f", "prompt.txt"], None, "from a file\nof two lines"),
        (["-f", "-"], b"from stdin", "from stdin"),
        (["a cat - asleep"], None, "a cat - asleep"),
        (["-"], b"from stdin\n", "from stdin"),
        ([], b"piped\r\nin", "piped\nin"),
        (["-"], "\ufeffGrüße 🎈".encode(), "Grüße 🎈"),
        (["--", "-dash"], None, "-dash"),
        (["words win"], b"not this", "words win"),
        (["-p", "flag wins"], b"not this", "flag wins"),
        (["words win", "-p", "not this"], None, "words win"),
    ],
)
def test_where_prompts_come_from(words: list[str], stdin: bytes | None, prompt: str) -> None:
    Path("prompt.txt").write_text("from a file\nof two lines\n")
    words = ["--json", *words] if "--" in words else [*words, "--json"]
    assert lens("gen", "--dry-run", *words, stdin=stdin).json["data"]["request"]["prompt"] == prompt


def test_one_prompt_many_seeds() -> None:
    run = lens("gen", "a fish", "-s", "100..102", "-s", "7", "--steps", "2", "--base", "128", "-q")
    assert run.lines == ["a-fish-100.png", "a-fish-101.png", "a-fish-102.png", "a-fish-7.png"]
    assert run.err == ""
    assert len({Path(path).read_bytes() for path in run.lines}) == 4


def test_aliases_and_sizes() -> None:
    for flag in ("--guidance", "--cfg", "--cfg-scale"):
        request = lens("gen", "x", flag, "3.5", "-W", "256", "-H", "128", "--dry-run", "--json").json["data"]["request"]
        assert (request["guidance"], request["width"], request["height"]) == (3.5, 256, 128)


def test_json_envelope() -> None:
    run = lens("gen", "a fish", "-s", "-1", "--steps", "2", "--json")
    answer = run.json
    assert (answer["schema"], answer["ok"], answer["command"], answer["error"]) == ("envelope/1", True, "gen", None)
    image = answer["data"]["images"][0]
    assert Path(image["path"]).is_file() and image["seed"] == answer["data"]["request"]["seeds"][0]
    assert len(run.lines) == 1


def test_json_stream() -> None:
    run = lens("gen", "a slow fish", "--steps", "6", "-n", "2", "--json-stream", "-q")
    events = [json.loads(line) for line in run.lines]
    kinds = [event["event"] for event in events]
    assert kinds.count("image") == 2 and kinds[-1] == "result" and events[-1]["ok"]
    steps = [event for event in events if event["event"] == "step"]
    assert [step["image"] for step in steps if step["step"] == 6] == [0, 1]  # the last is never held back
    assert len(steps) <= 12  # how they are held back is tested with a clock of its own in test_console.py


def test_dry_run_writes_nothing() -> None:
    Path("a.png").write_bytes(b"")
    run = lens("gen", "x", "-n", "2", "-o", "a.png", "--dry-run")
    assert run.lines == ["a-1.png", "a-2.png"]
    assert files() == ["a.png"]
    assert "12.3 MB" in run.err and "denoise" not in run.err
    data = lens("gen", "x", "-o", "new/", "--dry-run", "--json").json["data"]
    assert data["total_bytes"] == 12_345_678 and data["files"][0]["component"] == "transformer"
    assert not Path("new").exists()


def test_dry_run_of_a_model_that_is_not_here() -> None:
    run = lens("gen", "x", "-m", "lens", "--dry-run", "--json", real=True)
    assert run.code == 0
    data = run.json["data"]
    assert data["files"] == [] and data["download_bytes"] > 10**10 and data["request"]["width"] == 1024


def test_a_model_that_is_not_here() -> None:
    run = lens("gen", "x", "-m", "lens", real=True)
    assert run.code == 5 and run.out == b""
    assert "lens models pull lens" in run.err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_models_file_that_is_not_there(more: tuple[str, ...]) -> None:
    """A path is answered as a path, not with the registry's names."""
    run = lens("gen", "x", "-m", "models/lens.safetensors", *more, real=True)
    assert run.code == 5 and "models/lens.safetensors: no such file or folder" in run.err


def test_bytes_on_stdout() -> None:
    run = lens("gen", "x", "-o", "-", "--format", "webp", "--steps", "1")
    assert run.out[:4] == b"RIFF" and run.out[8:12] == b"WEBP"
    assert files() == []


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_formats(name: str) -> None:
    assert lens("gen", "x", "-o", name, "--steps", "1", "-q").lines == [name]
    assert recorded(name).steps == 1


def test_no_metadata() -> None:
    lens("gen", "secretword", "-o", "a.png", "--no-metadata", "--steps", "1")
    assert b"secretword" not in Path("a.png").read_bytes()


def test_settings_and_environment() -> None:
    Path("lens.toml").write_text('output_dir = "pics"\n[generate]\nsteps = 3\n[output]\nformat = "webp"\n')
    run = lens("gen", "x", "--json", LENS_GENERATE__STEPS="4")
    assert run.json["data"]["request"]["steps"] == 4
    assert run.json["data"]["images"][0]["path"].startswith("pics/x-")
    assert run.json["data"]["images"][0]["path"].endswith(".webp")


def test_warnings_for_what_cannot_be_honoured() -> None:
    run = lens("gen", "x", "-m", "lens-turbo", "--guidance", "5", "--negative-prompt", "blur", "--dry-run", "--json")
    assert len(run.json["warnings"]) == 2
    assert run.err.count("warning: ") == 2
    assert run.json["data"]["request"]["guidance"] == 1.0


def test_show_draws_on_stderr() -> None:
    colours: dict[str, Any] = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    run = lens("gen", "x", "--show", "--steps", "1", **colours)
    assert "▀" in run.err and "\x1b[" in run.err and "▀" not in run.out.decode()
    assert "▀" not in lens("gen", "x", "--steps", "1", **colours).err  # stdout is no terminal


@pytest.mark.parametrize(
    ("words", "env"),
    [
        ([], {"NO_COLOR": "1", "FORCE_COLOR": "1", "TERM": "xterm-256color"}),
        (["--no-color"], {"FORCE_COLOR": "1", "TERM": "xterm-256color"}),
        ([], {"FORCE_COLOR": "1", "TERM": "dumb"}),
        ([], dict[str, Any]()),  # stderr is no terminal
    ],
    ids=["NO_COLOR", "--no-color", "dumb", "pipe"],
)
def test_nothing_is_drawn_without_colours(words: list[str], env: dict[str, Any]) -> None:
    """Half blocks without colours are all alike. Whoever asked for the picture is told."""
    run = lens("gen", "x", "--show", "--steps", "1", *words, **env)
    assert run.code == 0 and "▀" not in run.err and "--show draws nothing" in run.err
    run = lens("gen", "x", "--steps", "1", *words, **env, LENS_OUTPUT__SHOW="true")
    assert run.code == 0 and "▀" not in run.err and "draws nothing" not in run.err


def test_markup_is_text_everywhere() -> None:
    run = lens("gen", "[red]x[/red] [/] <|end|>", "--steps", "1", "-v")
    assert run.code == 0
    assert "[red]x[/red] [/] <|end|>" in run.err


# ------------------------------------------------------------------------------------------------------ what goes wrong

BAD = [
    ([""], 2, "prompt is empty"),
    (["x" * 10_000], 2, "limit is 4,000"),
    (["a\x1bb"], 2, "U+001B"),
    (["x", "--size", "0x0"], 2, "nearest allowed size"),
    (["x", "--size", "17x17"], 2, "nearest allowed size"),
    (["x", "--size", "1000000000x1000000000"], 2, "nearest allowed size"),
    (["x", "-W", "-1", "-H", "-1"], 2, "nearest allowed size"),
    (["x", "--ar", "16:0"], 2, "aspect ratio"),
    (["x", "--ar", "3:1"], 2, "--ar 2:1"),
    (["x", "--base", "1024"], 2, "--base 384"),
    (["x", "--ar", "1:1", "--size", "256x256"], 2, "both set the size"),
    (["x", "-W", "256"], 2, "--height"),
    (["x", "--steps", "0"], 2, "--steps 0 is outside 1..250"),
    (["-", "a", "cat"], 2, "goes inside quotes"),
    (["a", "-", "cat"], 2, "goes inside quotes"),
    (["x", "--steps", "many"], 2, "--steps"),
    (["x", "--guidance", "nan"], 2, "0..100"),
    (["x", "-n", "0"], 2, "--num"),
    (["x", "-s", "abc"], 2, "no seed"),
    (["x", "-m", "lens-tubro"], 2, "lens-turbo"),
    (["x", "--dtype", "float16"], 2, "--dtype"),
    (["x", "--device", "tpu"], 2, "unknown device"),
    (["x", "--widht", "3"], 2, "--width"),
    (["x", "-o", "a.gif"], 2, ".png"),
    (["x", "-o", "{nope}"], 2, "{slug}"),
    (["x", "-o", "-", "-n", "2"], 2, "one picture"),
    (["x", "-o", "/proc/"], 1, "cannot write /proc"),
    (["x", "-o", "/dev/null/a.png"], 1, "cannot write /dev/null"),
    (["x", "-o", "n" * 300 + ".png"], 1, "too long"),
    (["-f", "absent.txt"], 1, "cannot read absent.txt"),
    (["-f", "."], 1, "cannot read ."),
    (["-f", "binary"], 2, "not UTF-8"),
    (["x", "-f", "binary"], 2, "exclude"),
    (["x", "-q", "-v"], 2, "exclude"),
    (["oom"], 6, "smaller picture"),
    (["broken"], 1, "internal error: RuntimeError: the fake is broken [red]on two lines[/red]"),
]


@pytest.mark.parametrize(("words", "code", "says"), BAD, ids=[" ".join(words)[:30] for words, _, _ in BAD])
def test_bad_input_is_one_line_and_a_code(
    words: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("binary").write_bytes(b"\xff\xfe\x00x")
    run = lens_inside(monkeypatch, capfd, "gen", *words)
    assert run.code == code
    assert run.out == b""
    talk = run.err.splitlines()
    errors = [line for line in talk if line.startswith("error: ")]
    assert len(errors) == 1
    assert talk[-1].startswith(("error: ", "hint: "))
    assert says in " ".join(talk[talk.index(errors[0]) :])
    assert files() == ["binary"]


def test_far_too_long_a_prompt_on_stdin() -> None:
    """It is not read to its end, so its length is not claimed either."""
    run = lens("gen", "-", stdin=b"x" * 200_000)
    assert run.code == 2 and "the prompt in stdin has more than 65,536 characters; the limit is 4,000" in run.err
    run = lens("gen", "-", stdin="é".encode() * 100_000)
    assert run.code == 2 and "more than 32,768 characters" in run.err
    run = lens("gen", "-", stdin=b"x" + "é".encode() * 100_000)  # the cut falls within a character
    assert run.code == 2 and "more than 32,768 characters" in run.err


def test_a_setting_that_is_refused_is_named() -> None:
    run = lens("gen", "x", LENS_GENERATE__STEPS="0")
    assert run.code == 2 and "error: LENS_GENERATE__STEPS = 0 is outside 1..250" in run.err
    Path("lens.toml").write_text("[generate]\nguidance = 1000\n")
    run = lens("gen", "x")
    assert run.code == 2 and "lens.toml: generate.guidance = 1000 is outside 0..100" in run.err


def test_bad_input_of_a_child() -> None:
    """The list above runs inside this process; this is the same boundary with real streams and a real exit."""
    run = lens("gen", "x", "--size", "17x17")
    assert (run.code, run.out) == (2, b"")
    assert run.err == (
        "error: cannot make 17x17: both sides must be multiples of 16\nhint: the nearest allowed size is 128x128\n"
    )


def test_errors_as_json() -> None:
    for words, code in ((["gen", "", "--json"], "usage"), (["gen", "x", "--widht", "3", "--json"], "usage")):
        run = lens(*words)
        assert run.code == 2
        assert run.json["ok"] is False and run.json["command"] == "gen"
        assert run.json["error"]["code"] == code and run.json["error"]["message"] and run.json["error"]["hint"]
        assert run.err == ""
    assert lens("gen", "x", "--json", "--json-stream").json["error"]["code"] == "usage"
    run = lens("gen", "", "--json-stream")
    assert run.json["event"] == "result" and run.json["error"]["code"] == "usage"


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in lens("gen", "broken", LENS_DEBUG="1").err
    run = lens("gen", "broken", "-vv", LENS_DEBUG="0")
    assert "Traceback" in run.err and run.err.splitlines()[-2].startswith("error: ")


def test_one_bad_picture_does_not_end_the_batch() -> None:
    run = lens("gen", "nan picture", "-s", "2..5", "--steps", "1", "-q")
    assert run.code == 8
    assert run.lines == ["nan-picture-2.png", "nan-picture-4.png"]
    answer = lens("gen", "nan picture", "-s", "2..5", "--steps", "1", "--json").json
    assert answer["error"]["code"] == "partial_batch"
    assert [row["seed"] for row in answer["data"]["images"]] == [2, 4]
    assert [(row["seed"], row["code"]) for row in answer["data"]["failed"]] == [(3, "non_finite"), (5, "non_finite")]


def test_a_batch_of_bad_pictures_is_its_first_error() -> None:
    run = lens("gen", "nan picture", "-s", "3", "-s", "5", "--steps", "1")
    assert run.code == 1 and run.out == b""
    assert "error: the latent is not finite" in run.err


def test_a_reader_that_leaves() -> None:
    import subprocess

    from tests.lens_cli.cli import command, environment

    child = subprocess.Popen(
        command("gen", "a slow fish", "-n", "3", "--steps", "2", "-q"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.wait(60) == 8
    said = child.stderr.read().decode()
    child.stderr.close()
    (saved,) = files()
    assert "2 of 3 pictures failed: cannot write to stdout: its reader has left" in said and f"{saved} is saved" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("redirect", "code", "says"),
    [
        ("> /dev/full", 1, "no space left"),
        (">&-", 1, "stdout is closed"),
        ("-n 2 > /dev/full", 8, "1 of 2 pictures failed: cannot write to stdout: no space left"),
        ("-o - > /dev/full", 1, "no space left"),
        ("-o - >&-", 1, "stdout is closed"),
        ("--json > /dev/full", 1, "no space left"),
        ("2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("<&-", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(redirect: str, code: int, says: str) -> None:
    import subprocess

    from tests.lens_cli.cli import command, environment

    line = shlex.join(command("gen", "x", "--steps", "1"))
    run = subprocess.run(["bash", "-c", f"{line} {redirect}"], capture_output=True, text=True, env=environment())
    assert run.returncode == code, run.stderr
    assert says in run.stderr
    assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr
    assert len(files()) == (0 if "-o -" in redirect else 1)  # the picture itself was saved before its name was told


def test_a_disk_that_fills_up() -> None:
    """A real refusal of the kernel: the child may write files of 2 kB at most."""
    import resource
    import subprocess

    from tests.lens_cli.cli import command, environment

    run = subprocess.run(
        command("gen", "x", "-n", "2", "--steps", "1", "--base", "256"),
        capture_output=True,
        text=True,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )
    assert run.returncode == 1 and run.stdout == ""
    assert "file too large" in run.stderr and "Traceback" not in run.stderr
    assert files() == []
