"""Content Credentials (C2PA): a signed statement in a picture's file that lens made it, and checking such statements.

Opt-in: `lens credentials init` makes a key and a certificate on this machine. Nobody vouches for them: whoever checks
a picture learns that it is unchanged since this key signed it, not who holds the key; every check says so. A signed
file is whole: whoever edits its metadata breaks the signature, so it is signed last, as bytes.

The library is c2pa-python, of the extra `credentials`; it never fetches anything here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backend.disk import make_folder, write_new
from backend.errors import FileError, LensError, UsageError, first_line, optional_package
from backend.paths import credentials_dir
from backend.picture import metadata
from backend.types import ImageFormat

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

YEARS = 10  # that a certificate holds
KEY, CHAIN = "key.pem", "chain.pem"
MARKS = (b"jumb", b"c2pa")  # bytes that every manifest has
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff", "AVIF": "image/avif"}
_NO_NETWORK = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the credentials of a picture are worth."""

    whole: bool  # unchanged since it was signed
    trusted: bool  # somebody whom the library knows vouches for the signer
    signer: str  # as the certificate calls itself
    generator: str  # program and version, as it calls itself
    problems: tuple[str, ...] = ()  # codes of C2PA's specification

    def line(self) -> str:
        """In words, for a person."""
        if not self.whole:
            return f"broken: the file is not what {self.signer} signed ({', '.join(self.problems)})"
        vouched = "trusted" if self.trusted else "self-signed or unknown: nobody vouches for the signer"
        return f"whole, signed by {self.signer} with {self.generator}; {vouched}"


def c2pa() -> Any:
    """The library. Raises LensError where it is not installed."""
    with optional_package():
        import c2pa
    return c2pa


# A key of one's own --------------------------------------------------------------------------------------------------


def make_credentials(name: str, *, again: bool = False) -> Path:
    """A key and a certificate of this machine; returns the certificate's file.

    `name`: what the certificate calls its holder, for everybody to read. `again`: in place of those that are there,
    which then sign nothing more. Raises UsageError, FileError, and LensError without the library.
    """
    c2pa()  # a key that nothing can use helps nobody
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise UsageError(f"{name[:70]!r} is no name for a certificate", hint="1 to 64 letters")
    folder = credentials_dir()
    if has_credentials():
        if not again:
            raise UsageError(f"there are credentials in {folder}", hint="--again makes new ones in their place")
        for old in (KEY, CHAIN):
            (folder / old).unlink(missing_ok=True)
    make_folder(folder)
    key, chain = _self_signed(name.strip())
    write_new(folder / KEY, key, private=True)
    return write_new(folder / CHAIN, chain)


def has_credentials() -> bool:
    """Whether this machine can sign."""
    return all((credentials_dir() / name).is_file() for name in (KEY, CHAIN))


def check_signing() -> None:
    """Raises LensError where nothing could be signed: no library, or (UsageError) no key."""
    c2pa()
    if not has_credentials():
        raise UsageError("there are no credentials to sign with", hint="make them: lens credentials init")


def _self_signed(name: str) -> tuple[bytes, bytes]:
    """(private key, certificates) as PEM: a leaf, as C2PA wants one, and the root that signed it and is thrown away."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    called = _called("lens on this machine", name)
    root = _certificate(called, called, root_key)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = root.add_extension(_usage(certificates=True), critical=True).sign(root_key, hashes.SHA256())
    leaf = _certificate(_called("lens", name), called, key)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(_usage(certificates=False), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    signed = leaf.add_extension(above, critical=False).sign(root_key, hashes.SHA256())
    chain = signed.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain


def _called(common: str, name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common), x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]
    )


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(minutes=5))
    made = made.not_valid_after(now + timedelta(days=365 * YEARS))
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not certificates, key_cert_sign=certificates, crl_sign=certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


# Signing and checking ------------------------------------------------------------------------------------------------


def sign(data: bytes, format: ImageFormat, record: Mapping[str, Any]) -> bytes:  # noqa: A002
    """A picture's file with signed credentials in it: 3 kB and about 60 ms more.

    Raises LensError: no library, or (UsageError) no key; FileError where the key does not sign.
    """
    check_signing()
    library = c2pa()
    program, _, version = metadata.software().partition(" ")
    manifest = {
        "claim_generator_info": [{"name": program, "version": version}],
        "title": f"{record['id']}.{format}",
        "assertions": [],
    }
    builder = {"thumbnail": {"enabled": False}, "intent": {"create": metadata.source_type(record)}}
    signed = io.BytesIO()
    try:
        key, chain = ((credentials_dir() / name).read_bytes() for name in (KEY, CHAIN))
        signer = library.Signer.from_info(library.C2paSignerInfo("es256", chain, key, None))
        context = library.Context.from_dict({"builder": builder, **_NO_NETWORK})
        library.Builder(manifest, context).sign(signer, f"image/{format}", io.BytesIO(data), signed)
    except (library.C2paError, OSError) as error:
        raise FileError(
            f"cannot sign the picture: {first_line(error)}", hint="lens credentials init --again makes a new key"
        ) from error
    return signed.getvalue()


def check(path: Path, kind: str) -> Checked | str | None:
    """What a picture's credentials are worth; a text where they cannot be checked; None: it has none.

    `kind`: Pillow's name of the format.
    """
    data = path.read_bytes()
    if kind not in _MIME or not all(mark in data for mark in MARKS):
        return None
    try:
        library = c2pa()
    except LensError as error:
        return f"not checked: {error}"
    try:
        reader = library.Reader(_MIME[kind], io.BytesIO(data), context=library.Context.from_dict(_NO_NETWORK))
        told = cast("dict[str, Any]", json.loads(reader.json()))
        return _read(told)
    except (library.C2paError, ValueError, KeyError, TypeError, AttributeError) as error:
        if "ManifestNotFound" in str(error):
            return None
        return f"not checked: {first_line(error)}"


def _read(told: dict[str, Any]) -> Checked:
    """Of the library's report; what it quotes of the file is anybody's text."""
    active = told["manifests"][told["active_manifest"]]
    by: Any = (active.get("claim_generator_info") or [{}])[0]
    codes = [str(entry.get("code")) for entry in told.get("validation_status") or []]
    signature: Any = active.get("signature_info") or {}
    return Checked(
        whole=told.get("validation_state") in ("Valid", "Trusted"),
        trusted=told.get("validation_state") == "Trusted",
        signer=str(signature.get("issuer")),
        generator=f"{by.get('name')} {by.get('version', '')}".strip(),
        problems=tuple(code for code in codes if code != "signingCredential.untrusted"),
    )
