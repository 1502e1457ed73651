"""`lens config`, held to what the settings themselves read back from the file it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import settings
from tests.lens_cli.cli import Run, real_inside


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """`lens config WORDS` with a settings file of its own, which lies in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own" / "config.toml"
    file.parent.mkdir()
    file.write_text("# mine\nmodel = 'nano'  # the small one\n")
    monkeypatch.setenv("LENS_CONFIG", str(file))

    def run(*words: str) -> Run:
        return real_inside(monkeypatch, capfd, "config", *words)

    run.file = file  # type: ignore[attr-defined]
    return run


def test_what_is_set_is_read_back_and_comments_stay(config) -> None:
    for key, value in (("generate.steps", "12"), ("output.format", "webp"), ("history", "false"), ("model", "lens")):
        assert config("set", key, value).code == 0
    read = settings.load()
    assert (read.generate.steps, str(read.output.format), read.history, read.model) == (12, "webp", False, "lens")
    assert "# mine" in config.file.read_text() and "# the small one" in config.file.read_text()
    assert config("get", "generate.steps").out == b"12\n"
    assert config("unset", "generate.steps").code == 0 and settings.load().generate.steps is None


def test_origins_are_told(config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config("set", "generate.guidance", "2", "--project").code == 0
    monkeypatch.setenv("LENS_GENERATE__STEPS", "7")
    rows = {row["key"]: row for row in config("show", "--json").json["data"]["settings"]}
    assert rows["generate.guidance"]["origin"] == str(tmp_path / "lens.toml")
    assert (rows["generate.steps"]["value"], rows["generate.steps"]["origin"]) == (7, "LENS_GENERATE__STEPS")
    assert rows["model"]["origin"] == str(config.file) and rows["history"]["origin"] == "default"
    shown = config("show").out.decode()
    assert "generate.steps = 7   (LENS_GENERATE__STEPS)" in shown and "history" not in shown


def test_every_setting_is_explained(config) -> None:
    rows = config("show", "--all", "--json").json["data"]["settings"]
    assert {row["key"] for row in rows} == {key for key, _ in settings.keys()}
    assert [row["key"] for row in rows if not row["about"]] == []


def test_a_key_is_kept_from_other_eyes(config) -> None:
    assert config("set", "reasoner.api_key", "sk-secret").code == 0
    assert config.file.stat().st_mode & 0o077 == 0
    assert config("set", "generate.steps", "3").code == 0  # the key is still in it
    assert config.file.stat().st_mode & 0o077 == 0
    assert b"sk-secret" not in config("show").out and b"(set)" in config("show").out
    run = config("set", "reasoner.api_key", "sk-secret", "--project")
    assert run.code == 2 and not Path("lens.toml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("set", "generate.step", "3"), "did you mean generate.steps?"),
        (("set", "generate.steps", "many"), "it must be a whole number"),
        (("set", "output.format", "gif"), "png"),
        (("get", "nothing.at.all"), "lens config show"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(config, words: tuple[str, ...], said: str) -> None:
    before = config.file.read_bytes()
    run = config(*words)
    assert run.code == 2 and said in run.err and config.file.read_bytes() == before


def test_a_broken_file_is_named(config) -> None:
    config.file.write_text("model = ")
    run = config("set", "generate.steps", "3")
    assert run.code == 2 and str(config.file) in run.err and config.file.read_text() == "model = "


def test_an_edit_is_checked(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "sh -c 'echo steps=3 >> \"$0\"'")
    run = config("edit")
    assert run.code == 2 and "unknown setting 'steps'" in run.err


def test_the_page_has_every_setting() -> None:
    """docs/settings.md, made by python -m lens_cli.work.settings_table docs/settings.md."""
    from backend.settings import keys
    from lens_cli.work.settings_table import table, with_table

    page = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text()
    assert with_table(page) == page and table() in page
    assert all(f"| `{key}` |" in page for key, _ in keys())
