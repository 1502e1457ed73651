"""A hub that lies. After each lie every file outside the cache is as it was, nothing new lies there, and no model is
recorded. Trusted because the whole surroundings are compared, and because each lie is one that once did harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.checkpoints import records
from backend.errors import LensError
from backend.hub import downloads, installed, pull_plan
from tests.backend.fake_hub import COMMIT, Hub
from tests.backend.hub.test_downloads import hub, published, said

__all__ = ["hub", "published", "said"]  # fixtures
Lie = Callable[[Hub, Path], None]


def _etag(value: str) -> Lie:
    def lie(hub: Hub, precious: Path) -> None:
        hub.headers["ETag"] = '"' + value.replace("PRECIOUS", str(precious)) + '"'

    return lie


def _listed(change: Callable[[dict[str, Any], Path], Any]) -> Lie:
    def lie(hub: Hub, precious: Path) -> None:
        hub.listing = lambda answer: change(answer, precious)

    return lie


def _first(key: str, value: Any) -> Lie:
    def change(answer: dict[str, Any], precious: Path) -> Any:
        for sibling in answer["siblings"]:
            if sibling["rfilename"].endswith("diffusion_pytorch_model.safetensors"):
                sibling[key] = value.replace("PRECIOUS", str(precious)) if isinstance(value, str) else value
        return answer

    return _listed(change)


def _top(key: str, value: Any) -> Lie:
    return _listed(lambda answer, precious: {**answer, key: value})


def _raw(body: bytes) -> Lie:
    def lie(hub: Hub, precious: Path) -> None:
        hub.raw = body

    return lie


LIES: dict[str, Lie] = {
    "etag absolute": _etag("PRECIOUS"),
    "etag absolute, new": _etag("PRECIOUS.new"),
    "etag relative": _etag("../../../../precious/file"),
    "etag relative, new": _etag("../../../../precious/new"),
    "etag empty": _etag(""),
    "etag dots": _etag(".."),
    "etag long": _etag("a" * 5000),
    "name absolute": _first("rfilename", "PRECIOUS"),
    "name relative": _first("rfilename", "../../../../precious/vae/diffusion_pytorch_model.safetensors"),
    "name hidden": _first("rfilename", "vae/../../../../../precious/file"),
    "name a number": _first("rfilename", 5),
    "name none": _first("rfilename", None),
    "name with escape": _first("rfilename", "vae/\x1b]0;x\x07.safetensors"),
    "size text": _first("size", "abc"),
    "size negative": _first("size", -5),
    "size huge": _first("size", 2**80),
    "lfs a text": _first("lfs", "abc"),
    "lfs sha": _first("lfs", {"sha256": "../../x", "size": 5, "pointerSize": 1}),
    "sha relative": _top("sha", "../../../../precious"),
    "sha absolute": _top("sha", "/precious"),
    "sha a number": _top("sha", 5),
    "sha none": _top("sha", None),
    "siblings a text": _top("siblings", "abc"),
    "siblings none": _top("siblings", None),
    "siblings texts": _top("siblings", ["a", "b"]),
    "list": _listed(lambda answer, precious: []),
    "text": _listed(lambda answer, precious: "abc"),
    "no JSON": _raw(b"{"),
    "deep JSON": _raw(b"[" * 100_000),
    "no UTF-8": _raw(b"\xff\xfe\xfd"),
    "NaN": _raw(b'{"sha": NaN, "siblings": Infinity}'),
    "digits": _raw(b'{"sha": ' + b"9" * 10_000 + b"}"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_touches_nothing_outside_the_cache(
    hub: Hub, said: list[str], tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "precious"
    for name in ("file", "vae/diffusion_pytorch_model.safetensors"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos = {"evil/repo": hub.repos["Jinstudio/Lens"]}
    LIES[lie](hub, place / "file")
    before = _outside(tmp_path)
    with pytest.raises(LensError) as raised:
        plan = pull_plan.plan_pull("lens", origin="evil/repo", say=said.append)
        downloads.pull(plan, say=said.append, bars=False)
    assert type(raised.value) is not LensError and raised.value.exit_code in (1, 2, 3, 5)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable()
    assert _outside(tmp_path) == before
    assert records.load("lens") is None
    assert hub.tokens == []  # the address has no encryption


def test_a_foreign_file_in_the_cache_is_not_deleted(hub: Hub, said: list[str]) -> None:
    plan = pull_plan.plan_pull("lens", say=said.append)
    mine = plan.folder / "vae/diffusion_pytorch_model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(LensError, match="was here before"):
        downloads.pull(plan, say=said.append, bars=False)
    assert mine.read_text() == "mine"


def test_an_etag_that_names_other_contents_is_found(hub: Hub, said: list[str]) -> None:
    """All files are said to have the contents of one: the second that does not fit is refused, the first stays."""
    hub.headers["ETag"] = '"same"'
    plan = pull_plan.plan_pull("lens", say=said.append)
    with pytest.raises(LensError, match="was here before"):
        downloads.pull(plan, say=said.append, bars=False)
    assert records.load("lens") is None
    assert [path.name for path in (plan.folder.parent.parent / "blobs").iterdir()] == ["same"]


@pytest.mark.parametrize("inside", ["../../../../x", "/etc/passwd", "a/../../b"])
def test_a_record_names_no_file_outside_its_snapshot(hub: Hub, said: list[str], inside: str) -> None:
    plan = pull_plan.plan_pull("lens", say=said.append)
    record = downloads.pull(plan, say=said.append, bars=False)
    file = next(iter(record.files.values()))
    records.save(records.Record(**{**vars(record), "files": {inside: file}}))
    with pytest.raises(LensError, match="damaged record"):
        records.load("lens")


def test_a_record_of_a_folder_elsewhere_removes_no_file(hub: Hub, said: list[str], tmp_path: Path) -> None:
    record = downloads.pull(pull_plan.plan_pull("lens", say=said.append), say=said.append, bars=False)
    mine = tmp_path / "mine"
    (mine / "vae").mkdir(parents=True)
    (mine / "vae/file").write_text("mine")
    file = next(iter(record.files.values()))
    records.save(records.Record(**{**vars(record), "folder": mine, "files": {"vae/file": file}}))
    installed.remove(installed.plan_removal("lens"))
    assert (mine / "vae/file").read_text() == "mine"


def test_no_encryption_is_said_before_anything_is_asked(
    hub: Hub, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    with pytest.raises(LensError, match="has no encryption"):
        pull_plan.plan_pull("lens", say=said.append)
    assert COMMIT  # no request could have been answered there


def _outside(root: Path) -> dict[str, bytes]:
    """Every file below `root` that is not in the hub's cache, with its contents."""
    cache = root / "hub"
    return {
        str(path): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_relative_to(cache)
    }


def test_a_file_that_cannot_be_read_does_not_end_the_check_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk's fault in the first of two."""
    from backend.hub import installed

    for name in "ab":
        (tmp_path / name).write_bytes(b"x")

    def digest(path: Path) -> str:
        if path.name == "a":
            raise OSError(5, "Input/output error")
        return "0" * 64

    monkeypatch.setattr(installed, "file_sha256", digest)
    rows = [(tmp_path / name, 1, "0" * 64, "hub") for name in "ab"]
    monkeypatch.setattr(installed, "_expectations", lambda name: rows)
    assert [check.problem for check in installed.verify("x")] == ["cannot be read: input/output error", None]
