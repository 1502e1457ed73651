"""Where an endpoint is and what limits its questions; how its errors speak of what a person can change; and whether an
address may be given a secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from backend.errors import UsageError, shown


@dataclass(frozen=True)
class Label:
    """What a caller calls one of the values of an `Address`, and where its users set it."""

    name: str  # "reasoner.timeout"
    where: str  # "the setting reasoner.timeout, or LENS_REASONER__TIMEOUT"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to ask, and the limits of one question. The key is shown in no message, record or representation."""

    base_url: str
    model: str
    key: str | None = field(repr=False)  # None: no key is sent
    timeout: float  # seconds without an answer
    limit: float | None = None  # seconds of a question in all, repetitions and pauses among them; None: none
    max_tokens: int  # of an answer, thoughts among them
    labels: Mapping[str, Label]  # of base_url, model, key, timeout, limit, max_tokens

    @property
    def shown(self) -> str:
        """The address for messages: without user, password and query."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    def where(self, name: str) -> str:
        """Where a person sets `name`."""
        return self.labels[name].where


def make_address(
    base_url: str,
    model: str,
    *,
    key: str | None,
    timeout: float,
    max_tokens: int,
    labels: Mapping[str, Label],
    limit: float | None = None,
) -> Address:
    """Check what a person gave. `key` None: OPENAI_API_KEY where the address is OpenAI's own, else none.

    Raises UsageError for what is no web address, no key or no time, in the words of `labels`.
    """
    base_url = base_url.strip().rstrip("/")
    named = {field: label.name for field, label in labels.items()}
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a port that is no number
        parts, usable = None, False
    if not usable or parts is None:
        raise UsageError(f"{named['base_url']} is no web address", hint="such as http://127.0.0.1:8080/v1")
    if parts.username or parts.password:
        raise UsageError(f"{named['base_url']} holds a user or a password", hint=f"use {labels['key'].where}")
    for field_name, seconds in (("timeout", timeout), ("limit", limit)):
        if seconds is not None and not 0 < seconds <= 3600:
            raise UsageError(f"{named[field_name]} = {seconds:g} is outside 0..3600 seconds")
    if key is None and parts.hostname == "api.openai.com" and parts.scheme == "https":
        key = os.environ.get("OPENAI_API_KEY")  # sent to its own house only, never to another address
    if key is not None and (not key.strip() or not key.isascii() or not key.isprintable()):
        raise UsageError(f"{named['key']} is no key", hint="it is one line of plain characters")
    return Address(
        base_url=base_url,
        model=model,
        key=key.strip() if key else None,
        timeout=timeout,
        limit=limit,
        max_tokens=max_tokens,
        labels=labels,
    )


HTTP_ALLOWED = "LENS_ALLOW_HTTP"  # environment: hosts, separated by commas, that may be asked without encryption
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_address(url: str, *, what: str) -> bool:
    """Whether a secret may be sent to `url`: only with encryption.

    Without it an address is used only on this machine, or where LENS_ALLOW_HTTP names its host. Raises UsageError.
    `what` names the address in the error.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return True
    host = parts.hostname or ""
    if parts.scheme != "http" or not host:
        raise UsageError(f"{what} is no web address: {shown(url)}", hint="https://host/…")
    if host not in _LOOPBACK and host not in _allowed_hosts():
        raise UsageError(
            f"{what} has no encryption: {shown(url)}; anybody on the way could replace what it sends",
            hint=f"use https://, or allow this host: {HTTP_ALLOWED}={host}",
        )
    return False


def _allowed_hosts() -> set[str]:
    return {host.strip().lower() for host in os.environ.get(HTTP_ALLOWED, "").split(",") if host.strip()}
