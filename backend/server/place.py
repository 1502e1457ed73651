"""Where a server is, as its own user finds it: the file that a running one leaves, and the address of another machine.

`server.pid` has three lines, as PostgreSQL's has: the process, its address, its owner's key. Only its owner can read
it. The key is drawn at every start; who holds it is the person whose files the server writes, and may name any of
them. Before a client says anything, the server proves that it knows the key, so that nobody else who sits on the port
is told a prompt.

Light ring: standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from backend.disk import write_error
from backend.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5367  # "LENS" on a telephone


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server listens, and what a client shows it."""

    host: str
    port: int
    tls: bool = False
    pid: int | None = None  # of a server of our own on this machine; None: of another
    key: str | None = field(default=None, repr=False)  # sent as a bearer token; None: none is

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_host(text: str, where: str) -> Place:
    """`127.0.0.1`, `box:5367`, `[::1]:5367`, `https://box`. Raises UsageError, which calls the value `where`."""
    hint = "such as 127.0.0.1:5367 or https://box:5367"
    parts, port = urlsplit(text if "://" in text else f"http://{text}"), None
    try:
        port = parts.port
        good = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/") and not parts.query
    except ValueError:
        good = False
    if not good or parts.username or parts.password or not str(parts.hostname).isascii():
        raise UsageError(f"{where} is no address of a server", hint=hint)
    tls = parts.scheme == "https"
    port = port if port is not None else (443 if tls else DEFAULT_PORT)
    return Place(host=str(parts.hostname), port=port, tls=tls)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def write_pid_file(path: Path, place: Place) -> None:
    """Say where this process listens; whole or not at all. Raises FileError."""
    text, new = f"{os.getpid()}\n{place.host} {place.port}\n{place.key}\n", path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
        os.replace(new, path)
    except OSError as error:
        raise write_error(path, error) from error


def read_pid_file(path: Path) -> Place | None:
    """Where the server of this home says that it listens; None: nowhere, or the file is torn."""
    try:
        with path.open(encoding="ascii") as file:
            pid, address, key = file.read(1000).split("\n")[:3]
        host, port = address.split(" ")
        place = Place(host=host, port=int(port), pid=int(pid), key=key)
    except (OSError, ValueError):
        return None
    return place if host and 0 < place.port < 65536 and len(key) >= 32 else None


def draw_key() -> str:
    return secrets.token_hex(16)


def proof(key: str, nonce: str) -> str:
    """What only who knows the key can answer."""
    return hmac.new(key.encode(), nonce.encode(), hashlib.sha256).hexdigest()
