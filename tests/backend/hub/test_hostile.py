"""A hub that lies. After each lie every file outside the cache is as it was, nothing new lies there, and no model is
recorded. Trusted because the whole surroundings are compared, and because each lie is one that once did harm."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import _http

from backend.checkpoints import records
from backend.errors import LensError, UntrustedError
from backend.hub import bounds, downloads, installed, pull_plan
from backend.hub.snapshot import snapshot
from tests.backend.fake_hub import COMMIT, Hub
from tests.backend.hostile_endpoint import OK, Mode, Scene, bomb, endless, moved, raw, says, trickle
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


API, FILES = "/api/", "/resolve/"  # what a listing's and a file's path hold


def _sends(where: str, mode: Mode, *, head: bool = True) -> Lie:
    """Answer with these bytes; where `head` is False what is asked with HEAD gets its right answer."""

    def lie(hub: Hub, precious: Path) -> None:
        def reply(handler: BaseHTTPRequestHandler, path: str) -> bool:
            if where not in path or (handler.command == "HEAD" and not head):
                return False
            with suppress(OSError):
                for piece in mode(Scene(url=hub.url, other=hub.url.replace("127.0.0.1", "localhost"))):
                    if isinstance(piece, bytes):
                        handler.wfile.write(piece)
                    else:
                        time.sleep(piece)
            return True

        hub.reply = reply

    return lie


def _says(where: str, body: bytes, status: int, kind: str, *more: str, head: bool = True) -> Lie:
    return _sends(where, says(body, status, kind, *more), head=head)


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
    "HTML": _raw(b"<!doctype html><html>"),
    "listing too large": _raw(b"[" + b"[]," * 400_000 + b"[]]"),
    "listing packed, huge": _says(API, bomb(5_000_000, 1), 200, "application/json", "Content-Encoding: gzip"),
    "listing packed three times": _says(
        API, bomb(5_000_000, 3), 500, "text/plain", "Content-Encoding: gzip, gzip, gzip"
    ),
    "listing trickles": _sends(API, trickle(OK + b"Content-Length: 999999\r\n\r\n{", b" ")),
    "listing's head trickles": _sends(API, trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a")),
    "listing silent": _sends(API, raw(3.0)),
    "listing cut": _sends(API, raw(OK + b'Content-Length: 999\r\n\r\n{"sha":')),
    "listing elsewhere": _sends(API, moved("{other}/api/models/evil/repo", 302)),
    "listing for ever elsewhere": _sends(API, moved("/api/models/evil/repo?again", 302)),
    "listing in a file": _sends(API, moved("file:///etc/passwd", 302)),
    "listing nowhere": _sends(API, moved("http://[::1", 302)),
    "listing busy, absurdly long": _says(API, b"{}", 429, "application/json", "Retry-After: " + "9" * 300),
    "error with escapes": _says(API, b"{}", 400, "application/json", "X-Error-Message: \x1b[31m\u202ered"),
    "head busy, absurdly long": _says(FILES, b"", 429, "text/plain", 'RateLimit: "api";r=0;t=999999999'),
    "content busy, absurdly long": _says(FILES, b"", 429, "text/plain", "Retry-After: 999999999", head=False),
    "content of another length": _says(FILES, b"x", 200, "text/plain", head=False),
    "content without end": _sends(FILES, endless(OK + b"\r\n", b"x" * 65536), head=False),
    "content elsewhere, without encryption": _sends(FILES, moved("http://a.example/x", 302)),
    "content elsewhere, no address": _sends(FILES, moved("http://[::1", 302)),
    "content's head trickles": _sends(FILES, trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a")),
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
    for name, value in {"SILENCE": 0.3, "WHOLE": 0.6, "LISTING": 2**20}.items():  # bounds that are reached at once
        monkeypatch.setattr(bounds, name, value)
    monkeypatch.setattr(pull_plan, "SILENCE", 0.3)
    waits: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": waits.append}))
    hub.repos = {"evil/repo": hub.repos["Jinstudio/Lens"]}
    LIES[lie](hub, place / "file")
    before = _outside(tmp_path)
    began = time.monotonic()
    with pytest.raises(LensError) as raised:
        plan = pull_plan.plan_pull("lens", origin="evil/repo", say=said.append)
        downloads.pull(plan, say=said.append, bars=False)
    assert time.monotonic() - began < 25  # what trickles does so for 40 s; the machine may be busy
    assert type(raised.value) is not LensError and raised.value.exit_code in (1, 2, 3, 5)
    assert "\n" not in str(raised.value) and str(raised.value).isprintable()
    assert _outside(tmp_path) == before
    assert records.load("lens") is None
    assert hub.tokens == []  # the address has no encryption
    assert max(waits, default=0) <= bounds.PAUSE + 1  # what the library would have slept


def test_there_are_forty() -> None:
    assert len(LIES) >= 40


@pytest.mark.parametrize("lie", ["name", "relative name", "pattern", "etag", "commit"])
def test_a_whole_repository_touches_nothing_outside_the_cache(hub: Hub, tmp_path: Path, lie: str) -> None:
    """By huggingface_hub's own download, which joins names, commits and ETags as they come."""
    mine = tmp_path / "precious/diffusion_pytorch_model.safetensors"
    mine.parent.mkdir()
    mine.write_text("mine")
    hub.repos = {"evil/repo": hub.repos["Jinstudio/Lens"]}
    lies = {
        "name": _first("rfilename", str(mine)),
        "relative name": _first("rfilename", f"../../../../{mine.parent.name}/x"),
        "pattern": _first("rfilename", "a*.safetensors"),
        "etag": _etag(f"{mine}.new"),
        "commit": _top("sha", "../../x"),
    }
    lies[lie](hub, mine)
    before = _outside(tmp_path)
    with pytest.raises(UntrustedError):
        snapshot("evil/repo", ["*"], download=True)
    assert _outside(tmp_path) == before


def test_a_whole_repository_comes(hub: Hub) -> None:
    hub.repos = {"good/repo": hub.repos["Jinstudio/Lens"]}
    there = snapshot("good/repo", ["*.json"], download=True)
    assert (there / "model_index.json").is_file() and not list(there.rglob("*.safetensors"))
    assert snapshot("good/repo", ["*.json"], download=False) == there


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
