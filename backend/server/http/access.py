"""Who may ask the server, and how much they may send.

On this machine anybody who can reach loopback may have pictures drawn, as with other local servers; a web page may not:
neither from another origin, nor under a name that it made point here (DNS rebinding). Beyond this machine everybody
shows a key. Whoever holds the owner's key (`backend.server.place`) may name any file; nobody else may.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.server.place import is_loopback

BODY_BYTES = 1 << 20  # of a request: a prompt has 4,000 characters
UPLOAD_BYTES = 64 << 20  # where pictures come with it
UPLOADS = ("/v1/images/edits", "/sdapi/v1/img2img")
_SMALLER = f"send smaller pictures, to {' or '.join(UPLOADS)}"
OPEN = ("/health",)  # asked before a key is shown


@dataclass(frozen=True, kw_only=True)
class Access:
    """What the server was started with."""

    owner_key: str
    api_key: str | None  # None: nobody needs one, which holds on loopback only
    loopback: bool  # whether it listens there alone


class Gate:
    """ASGI middleware: a request goes on, or is answered with 401, 403 or 413. `request.state.owner` says who asks."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        shown = _key(headers)
        owner = shown is not None and _same(shown, self._access.owner_key)
        scope.setdefault("state", {})["owner"] = owner
        if (why := self._refusal(headers)) is not None:
            await _answer(send, 403, "forbidden", why)
        elif not owner and scope["path"] not in OPEN and not self._may(shown):
            await _answer(send, 401, "unauthorized", "this server asks for its key", "Authorization: Bearer KEY")
        else:
            most = UPLOAD_BYTES if scope["path"] in UPLOADS else BODY_BYTES
            await self._bounded(scope, receive, send, headers, most)

    def _may(self, shown: str | None) -> bool:
        return self._access.api_key is None or (shown is not None and _same(shown, self._access.api_key))

    def _refusal(self, headers: Headers) -> str | None:
        """Why a browser's request is not answered; None: it is, or it is no browser's."""
        host = headers.get("host", "")
        if self._access.loopback and not is_loopback(_hostname(host)):
            return "this server answers to 127.0.0.1 and localhost only"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "pages of other origins are not answered"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return "pages of other sites are not answered"
        return None

    async def _bounded(self, scope: Scope, receive: Receive, send: Send, headers: Headers, most: int) -> None:
        """Go on; a body that is too long is refused by what it says of itself, or cut off where it says less."""
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            await _answer(send, 413, "too_large", f"the request has more than {most:,} bytes", _SMALLER)
            return
        taken, begun = 0, False

        async def counted() -> Message:
            nonlocal taken
            if taken > most:
                return {"type": "http.disconnect"}
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= most else {"type": "http.disconnect"}

        async def told(message: Message) -> None:
            nonlocal begun
            if taken <= most or begun:  # of a body that was cut off the app knows nothing to say
                begun = True
                await send(message)

        try:
            await self._app(scope, counted, told)
        except ClientDisconnect:
            if taken <= most:
                raise
        if taken > most and not begun:
            await _answer(send, 413, "too_large", f"the request has more than {most:,} bytes", _SMALLER)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _key(headers: Mapping[str, str]) -> str | None:
    """The key that is shown: a bearer token, or the password of HTTP's basic form, which A1111's clients know."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (ValueError, binascii.Error):
            return None
    return None


def _same(shown: str, key: str) -> bool:
    return secrets.compare_digest(shown.encode(), key.encode())


async def _answer(send: Send, status: int, code: str, message: str, hint: str | None = None) -> None:
    error: dict[str, Any] = {"code": code, "message": message, "hint": hint, "type": "invalid_request_error"}
    body = json.dumps({"error": error | {"param": None}, "detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
