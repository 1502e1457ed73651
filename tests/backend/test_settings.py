"""Precedence, types and messages of the settings files and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend import paths
from backend.errors import UsageError
from backend.settings import Settings, env_name, keys, load
from backend.types import DType, ImageFormat


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home/config").mkdir(parents=True)
    return tmp_path


def write_user(text: str) -> None:
    paths.config_file().write_text(text)


def test_nothing_set() -> None:
    assert load() == Settings()


def test_precedence_and_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    write_user('model = "lens"\n[generate]\nsteps = 1\nguidance = 3\n[output]\nformat = "webp"\n')
    Path("lens.toml").write_text("[generate]\nsteps = 2\ndtype = 'bfloat16'\n")
    monkeypatch.setenv("LENS_MODEL", "nano")
    monkeypatch.setenv("LENS_OUTPUT__METADATA", "off")
    monkeypatch.setenv("LENS_OUTPUT_DIR", "/pictures")
    found = load()
    assert (found.model, found.output_dir) == ("nano", "/pictures")
    assert (found.generate.steps, found.generate.guidance, found.generate.dtype) == (2, 3.0, DType.bfloat16)
    assert (found.output.format, found.output.metadata) == (ImageFormat.webp, False)
    assert found.origins["model"] == "LENS_MODEL"
    assert found.origins["generate.steps"].endswith("lens.toml")
    assert found.origins["generate.guidance"] == str(paths.config_file())


def test_environment_names_follow_the_fields() -> None:
    names = {key: env_name(key) for key, _ in keys()}
    assert names["model"] == "LENS_MODEL"
    assert names["output_dir"] == "LENS_OUTPUT_DIR"
    assert names["reasoner.api_key"] == "LENS_REASONER__API_KEY"
    assert names["generate.steps"] == "LENS_GENERATE__STEPS"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle = 'lens'", "did you mean model"),
        ("[generate]\nstep = 1", "did you mean generate.steps"),
        ("[generate]\nsteps = 'many'", "a whole number"),
        ("[generate]\nsteps = true", "a whole number"),
        ("[generate]\nsteps = 1.5", "a whole number"),
        ("[generate]\ndtype = 'float16'", "auto, float32, bfloat16"),
        ("[output]\nmetadata = 1", "true or false"),
        ("model = 3", "text in quotes"),
        ("generate = 3", "did you mean generate."),
        ("[model]\nx = 1", "did you mean model"),
        ("broken", ""),
    ],
)
def test_files_refused(text: str, says: str) -> None:
    write_user(text)
    with pytest.raises(UsageError) as caught:
        load()
    assert str(paths.config_file()) in str(caught.value)
    assert says in str(caught.value.hint or caught.value)


def test_a_project_sends_prompts_nowhere() -> None:
    Path("lens.toml").write_text('[reasoner]\nbase_url = "http://198.51.100.1/v1"')
    with pytest.raises(UsageError, match="your own settings"):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LENS_GENERATE__STEPS", "x"),
        ("LENS_GENERATE__STEP", "1"),
        ("LENS_OUTPUT__SHOW", "maybe"),
        ("LENS_OUTPUT__FORMAT", "gif"),
    ],
)
def test_environment_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        load()


def test_foreign_and_empty_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENS_DEBUG", "1")
    monkeypatch.setenv("LENS_SOMETHING_ELSE", "1")
    monkeypatch.setenv("LENS_MODEL", "")
    assert load() == Settings()


def test_named_config_must_exist(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("LENS_CONFIG", str(folder / "absent.toml"))
    with pytest.raises(UsageError, match="missing"):
        load()


@pytest.mark.parametrize("name", ["HOME", "XDG_CONFIG_HOME"])
def test_below_a_file_lie_no_settings(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    (folder / "file").write_text("no folder")
    monkeypatch.delenv("LENS_HOME")
    monkeypatch.setenv(name, str(folder / "file/inside"))
    assert load() == Settings()


def test_lens_home_holds_everything(folder: Path) -> None:
    for place in (paths.config_dir(), paths.data_dir(), paths.cache_dir()):
        assert place.parent == folder / "home"


def test_xdg_without_lens_home(monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> None:
    monkeypatch.delenv("LENS_HOME")
    for place in (paths.config_dir(), paths.data_dir(), paths.cache_dir(), paths.hub_cache()):
        assert place.is_relative_to(isolated_home)
        assert not place.exists()  # asking where is not making


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('output_dir = "/tmp/x"', "output_dir"),
        ('output_dir = "../x"', "output_dir"),
        ('model = "~/m"', "model"),
        ('[output]\ntemplate = "../../{seed}"', "output.template"),
        ('[reasoner]\nsystem_prompt = "/etc/passwd"', "reasoner.system_prompt"),
        ('[generate]\nloras = ["a.safetensors", "../b.safetensors=0.5"]', "generate.loras"),
        ('output_dir = "pictures/today"', None),
        ('model = "nano"', None),
        ('[output]\ntemplate = "{date}/{seed}"', None),
        ('[generate]\nloras = ["sky=0.8"]', None),
    ],
)
def test_a_path_of_a_project_that_leads_out_of_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str | None
) -> None:
    """The folder came from elsewhere; the person's own file may name whatever it likes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lens.toml").write_text(line)
    lines: list[str] = []
    load(lines.append)
    assert len(lines) == (said is not None)
    assert all(f"lens.toml: {said} leads out of this folder" in text for text in lines)
    (tmp_path / "lens.toml").rename(tmp_path / "own.toml")
    monkeypatch.setenv("LENS_CONFIG", str(tmp_path / "own.toml"))
    load(lines.append)
    assert len(lines) == (said is not None)
