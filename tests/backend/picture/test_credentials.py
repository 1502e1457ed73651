"""Signed pictures: made, checked, broken.

Why it can be trusted: the signature is checked by the C2PA library itself, the pixels and the record by reading the
signed file as any other, and the break is one changed bit.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from cryptography import x509
from PIL import Image

from backend.errors import LensError, UsageError
from backend.paths import credentials_dir
from backend.picture import credentials
from backend.picture.credentials import CHAIN, KEY, Checked, check, make_credentials, sign
from backend.picture.images import encode, read_metadata
from backend.picture.metadata import COMPOSITE_TYPE, SOURCE_TYPE, make_record
from backend.requests import build_request
from backend.settings import Settings
from backend.types import ImageFormat
from backend.wish import Wish
from tests.backend.test_wish import finished
from tests.lens_cli.cli import lens_inside

RECORD = make_record(finished(build_request(Wish(prompt="a"), Settings(), pytest.fail).request), pixels="0")


def saved(folder: Path, format: ImageFormat) -> tuple[Path, bytes]:  # noqa: A002
    plain = encode(Image.new("RGB", (32, 16), "red"), format, quality=None, record=RECORD)
    path = folder / f"a.{format}"
    path.write_bytes(sign(plain, format, RECORD))
    return path, plain


@pytest.mark.parametrize("format", ImageFormat)
def test_signed_checked_and_broken(tmp_path: Path, format: ImageFormat) -> None:  # noqa: A002
    make_credentials("a person")
    path, plain = saved(tmp_path, format)
    found, checked = read_metadata(path), check(path, format.upper())
    assert isinstance(checked, Checked) and checked.whole and not checked.trusted and checked.problems == ()
    assert checked.signer == "a person" and checked.generator.startswith("lens ")
    assert "nobody vouches" in checked.line()
    assert found.record is not None and found.record["id"] == RECORD["id"] and found.source_type == SOURCE_TYPE
    assert Image.open(path).convert("RGB").tobytes() == Image.open(io.BytesIO(plain)).convert("RGB").tobytes()
    assert 0 < path.stat().st_size - len(plain) < 6_000
    data = bytearray(path.read_bytes())
    data[-30] ^= 1  # among the pixels of a PNG and a JPEG, in the manifest of a WebP
    path.write_bytes(data)
    broken = check(path, format.upper())
    assert isinstance(broken, Checked) and not broken.whole and broken.line().startswith("broken")


def test_what_is_not_signed(tmp_path: Path) -> None:
    plain = encode(Image.new("RGB", (32, 16)), ImageFormat.png, quality=None, record=RECORD)
    (tmp_path / "a.png").write_bytes(plain)
    assert check(tmp_path / "a.png", "PNG") is None
    (tmp_path / "a.png").write_bytes(plain + b"jumb c2pa")  # the words alone
    assert not isinstance(check(tmp_path / "a.png", "PNG"), Checked)


def test_the_key_is_one_s_own() -> None:
    path = make_credentials("a person")
    assert (credentials_dir() / KEY).stat().st_mode & 0o077 == 0
    first = path.read_bytes()
    leaf = x509.load_pem_x509_certificates(first)[0]
    assert "a person" in leaf.subject.rfc4514_string()
    with pytest.raises(UsageError, match="there are credentials"):
        make_credentials("another")
    assert make_credentials("another", again=True) == path and path.read_bytes() != first
    for name in ("", "x" * 65, "a\nb"):
        with pytest.raises(UsageError, match="no name"):
            make_credentials(name, again=True)


def test_nothing_to_sign_with(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no credentials to sign with"):
        sign(b"", ImageFormat.png, RECORD)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    for call in (credentials.check_signing, lambda: make_credentials("a")):
        with pytest.raises(LensError, match="c2pa-python is not installed"):
            call()


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is drawn; then signed, told by info, and a key that is no key is an error."""
    monkeypatch.chdir(tmp_path)
    run = lens_inside(monkeypatch, capfd, "gen", "a cat", "-s", "1", "-o", "a.png", "--credentials")
    assert run.code == 2 and "lens credentials init" in run.err and not Path("a.png").exists()
    run = lens_inside(monkeypatch, capfd, "credentials", "init", "--name", "me")
    assert run.code == 0 and Path(run.lines[0]).read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert "self-signed" in run.err
    monkeypatch.setenv("LENS_OUTPUT__CREDENTIALS", "true")
    assert lens_inside(monkeypatch, capfd, "gen", "a cat", "-s", "1", "-o", "a.png").code == 0
    told = lens_inside(monkeypatch, capfd, "info", "a.png").out.decode()
    assert "whole, signed by me with lens" in told and "nobody vouches" in told
    assert lens_inside(monkeypatch, capfd, "gen", "a cat", "-o", "b.png", "--no-credentials").code == 0
    assert lens_inside(monkeypatch, capfd, "info", "b.png", "--json").json["data"]["images"][0]["credentials"] is None
    (credentials_dir() / CHAIN).write_text("no certificate")
    run = lens_inside(monkeypatch, capfd, "gen", "a cat", "-s", "1", "-o", "c.png")
    assert run.code == 1 and "cannot sign" in run.err and not Path("c.png").exists()


def test_of_what_a_mask_kept_only_a_part_is_made(tmp_path: Path) -> None:
    record = {**RECORD, "mask": {"name": "m.png", "sha256": "0" * 64}}
    (tmp_path / "a.webp").write_bytes(encode(Image.new("RGB", (8, 8)), ImageFormat.webp, quality=None, record=record))
    assert read_metadata(tmp_path / "a.webp").source_type == COMPOSITE_TYPE
