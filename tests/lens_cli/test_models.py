"""`lens models` through child processes: streams, exit codes, envelopes, and a real pull from a loopback hub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backend import tiny_weights as tiny
from tests.backend.fake_hub import COMMIT, Hub, serve
from tests.lens_cli.warm import warm

NAMES = ["nano", "nano-turbo", "nano-base", "lens", "lens-turbo", "lens-base"]  # in the order of the list
RUN = [sys.executable, "-c", "from lens_cli.app import main; main()"]
ROOT = Path(__file__).resolve().parent.parent.parent


def environment(hub: Hub | None = None) -> dict[str, str]:
    """The test's own HOME; with a hub, its address and the network allowed."""
    names = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    if hub is not None:
        names |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    return names


def lens(*words: str, hub: Hub | None = None) -> subprocess.CompletedProcess[str]:
    code, out, err = warm("real").call([*words], b"", environment(hub), 300)
    return subprocess.CompletedProcess(words, code, out.decode(), err.decode())


def data_of(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert (answer["schema"], answer["ok"], answer["error"]) == ("envelope/1", True, None)
    return answer["data"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer is not the pinned one, so it is served from a repository named with --from."""
    return tiny.write_diffusers(tmp_path_factory.mktemp("published") / "repo")


@pytest.fixture
def hub(published: Path, tmp_path: Path) -> Iterator[Hub]:
    with serve({"someone/tiny": Path(shutil.copytree(published, tmp_path / "served"))}) as running:
        yield running


def test_list() -> None:
    run = lens("models", "list")
    assert run.returncode == 0
    assert [line.split()[0] for line in run.stdout.splitlines()] == NAMES
    rows = {row["name"]: row for row in data_of(lens("models", "list", "--json"))["models"]}
    assert rows["lens"]["state"] == "absent"
    assert rows["lens"]["download_bytes"] == 22_334_041_829
    assert rows["nano"]["default"]
    assert (rows["lens"]["smallest_card"], rows["nano"]["smallest_card"]) == ("6 GB", None)
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_show() -> None:
    run = lens("models", "show", "lens")
    assert "5c5521d4417a (pinned)" in run.stdout
    assert "Apache-2.0" in run.stdout
    data = data_of(lens("models", "show", "lens-turbo", "--json"))
    assert (data["steps"], data["guidance"], data["distilled"]) == (4, 1.0, True)
    assert [source["repo"] for source in data["sources"]][1] == "Comfy-Org/Lens"
    assert {row["weights"] for row in data["cards"]} == {"BF16", "mxfp8"}
    table = run.stdout[run.stdout.index("will it run?") :].splitlines()
    assert "lens models pull lens --packed" in table[-3] and max(map(len, table)) <= 84


def test_show_of_a_folder(published: Path) -> None:
    data = data_of(lens("models", "show", str(published), "--json"))
    assert data["params"]["dit"]["num_layers"] == tiny.DIT.num_layers
    assert {row["component"] for row in data["files"]} == {"transformer", "text_encoder", "vae", "tokenizer"}
    assert data["assumed"]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("models", "path", "lens"), 5, "model_missing"),
        (("models", "pull", "lens"), 5, "model_missing"),  # HF_HUB_OFFLINE is set for every test
        (("models", "pull", "lens", "--offline"), 5, "model_missing"),
        (("models", "pull", "nano"), 2, "usage"),
        (("models", "pull", "lenz"), 2, "usage"),
        (("models", "rm", "nano"), 2, "usage"),
        (("models", "rm", "lens"), 5, "model_missing"),
        (("models", "show", "lenz"), 2, "usage"),
        (("models", "verify", "lens"), 5, "model_missing"),
    ],
)
def test_errors(words: tuple[str, ...], code: int, error: str) -> None:
    run = lens(*words)
    assert (run.returncode, run.stdout) == (code, "")
    assert run.stderr.splitlines()[-2 if "hint:" in run.stderr else -1].startswith("error: ")
    assert "Traceback" not in run.stderr
    answer = json.loads(lens(*words, "--json").stdout)
    assert (answer["ok"], answer["error"]["code"]) == (False, error)


def test_verify_looks_at_every_model() -> None:
    """One that is not here hides nothing of the others."""
    run = lens("models", "verify", "nano", "lens", "nope", "--quick")
    assert run.returncode == 8
    assert [line.split("\t")[0] for line in run.stdout.splitlines()] == ["ok"] * 5  # the reasoner's adapter too
    assert "warning: lens is not on this disk" in run.stderr and "no model is called 'nope'" in run.stderr
    assert "2 of 3 models could not be checked" in run.stderr
    answer = json.loads(lens("models", "verify", "lens", "nano", "--quick", "--json").stdout)
    assert (answer["ok"], answer["error"]["code"]) == (False, "partial_batch")
    assert [row["model"] for row in answer["data"]["files"]] == ["nano"] * 5
    assert [(row["model"], row["code"]) for row in answer["data"]["failed"]] == [("lens", "model_missing")]
    assert lens("models", "verify", "lens", "lens-turbo").returncode == 5  # none of them: as one alone


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("lens gen -m ", NAMES),
        ("lens models show lens-", ["lens-turbo", "lens-base"]),
        ("lens models verify nano len", ["lens", "lens-turbo", "lens-base"]),
        ("lens models show ./", []),  # the shell completes paths by itself
    ],
)
def test_tab_completes_names(words: str, names: list[str]) -> None:
    """What bash's completion script asks; it is waited for at every TAB, so nothing heavy may come along."""
    count = len(words.split()) - (not words.endswith(" "))
    asked = {"_LENS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    code = (
        "import sys\nfor name in ('torch', 'numpy', 'PIL', 'safetensors'): sys.modules[name] = None\n"
        "sys.argv = ['lens']\nfrom lens_cli.app import main\nmain()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment() | asked
    )
    assert (run.returncode, run.stdout.split()) == (0, names), run.stderr


def test_pull_verify_path_rm(hub: Hub) -> None:
    origin = ("--from", "someone/tiny")
    plan = data_of(lens("models", "pull", "lens", *origin, "--dry-run", "--json", hub=hub))
    assert (plan["fetched_bytes"], hub.served) == (0, [])
    run = lens("models", "pull", "lens", *origin, "-q", hub=hub)
    assert (run.returncode, run.stderr) == (0, "")
    folder = Path(run.stdout.strip())
    assert folder.name == COMMIT
    assert lens("models", "path", "lens").stdout.strip() == str(folder)
    rows = {row["name"]: row for row in data_of(lens("models", "list", "--json"))["models"]}
    assert rows["lens"]["repo"] == "someone/tiny"
    checks = [row for row in data_of(lens("models", "verify", "--json"))["files"] if row["model"] == "lens"]
    assert len(checks) == len(plan["files"])
    assert {row["against"] for row in checks} == {"pull record"}
    shard = (folder / "text_encoder" / "model-00001-of-00003.safetensors").resolve()
    shard.write_bytes(shard.read_bytes()[:-4])
    run = lens("models", "verify", "lens")
    assert run.returncode == 1
    assert "cut short in its tensor data" in run.stdout
    assert "1 of 13 files are bad" in run.stderr
    rows = {row["name"]: row for row in data_of(lens("models", "list", "--json"))["models"]}
    assert rows["lens"]["state"] == "damaged"
    preview = lens("models", "rm", "lens")
    assert folder.exists()
    assert "--yes does it" in preview.stderr
    assert data_of(lens("models", "rm", "lens", "--yes", "--json"))["removed"]
    assert not folder.exists()
    assert lens("models", "path", "lens").returncode == 5


def test_from_a_folder_that_is_no_lens_of_this_size(published: Path) -> None:
    run = lens("models", "pull", "lens", "--from", str(published))
    assert run.returncode == 2
    assert "another size" in run.stderr


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for a child process")
def test_ctrl_c_keeps_what_came(hub: Hub) -> None:
    """The line hangs in the middle of a shard; the person stops the program; the same command finishes the job."""
    path = "text_encoder/model-00002-of-00003.safetensors"
    file = hub.repos["someone/tiny"] / path
    hub.hang[path] = 300_000
    words = [*RUN, "models", "pull", "lens", "--from", "someone/tiny"]
    small_chunks = "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 10_000; "
    words[2] = small_chunks + words[2]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(hub))
    deadline = time.monotonic() + 30
    while path not in hub.hanging and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    hub.served.clear()
    run = lens("models", "pull", "lens", "--from", "someone/tiny", hub=hub)
    assert run.returncode == 0, run.stderr
    assert (path, "bytes=300000-", file.stat().st_size - 300_000) in hub.served
    assert data_of(lens("models", "verify", "lens", "--json"))["files"]
