"""The HTTP client that huggingface_hub gets from us: its own waits for an answer without end, reads it without a bound
and sleeps as long as a hub says.

Light ring: huggingface_hub is imported inside the functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from backend.disk import check_commit, check_etag
from backend.errors import NetworkError, human_bytes
from backend.foreign.answers import cut, unpack_bounded, within

SILENCE = 10.0  # seconds without a byte
WHOLE = 60.0  # seconds of an answer that is no file's content, and over which a file's pace is measured
LISTING = 8 * 2**20  # bytes of such an answer; that of a repository with ten thousand files
REFUSAL = 2**16  # bytes of an error
PAUSE = 60.0  # seconds that a hub may ask to wait before a try; of more it is not told
SLOWEST = 500.0  # bytes a second of a file's content: less is an interruption

T = TypeVar("T")


def use_bounded_client() -> None:
    """From now on huggingface_hub asks through a client with the bounds above."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import get_session

    if _bound not in get_session().event_hooks["response"]:
        set_client_factory(_make)


def asked(question: Callable[[], T]) -> T:
    """An answer that is no file's content, in WHOLE seconds at most. Raises NetworkError, and as the question."""
    use_bounded_client()
    try:
        return within(WHOLE, question)
    except TimeoutError:
        raise NetworkError(f"the hub had not answered in full after {WHOLE:g} s", hint="try again later") from None


def _make() -> Any:
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = SILENCE
    client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], _bound]}
    return client


def _bound(response: Any) -> None:
    """Bound what is read of an answer, and how long is waited for the next; refuse a commit and ETags that the library
    would join to a path."""
    headers = response.headers
    if (commit := headers.get("x-repo-commit")) is not None:
        check_commit(commit, "the hub")
    if (etag := headers.get("x-linked-etag") or headers.get("etag")) is not None and response.request.method == "HEAD":
        check_etag(etag.removeprefix("W/").strip('"'), "the hub")
    asked_to_wait = headers.get("retry-after")
    if asked_to_wait is not None and not _is_short(asked_to_wait):
        del headers["retry-after"]
    for name in ("ratelimit", "ratelimit-policy"):  # a pause in another form; without it the library doubles its own
        headers.pop(name, None)
    if response.status_code >= 400:
        unpack_bounded(response, lambda pieces: cut(pieces, REFUSAL))
    elif response.url.path.startswith("/api/"):
        unpack_bounded(response, _listing)
    elif response.request.method == "GET" and "content-encoding" not in headers:
        unpack_bounded(response, _at_a_pace)


def _is_short(seconds: str) -> bool:
    return seconds.strip().isascii() and seconds.strip().isdecimal() and len(seconds) < 5 and float(seconds) <= PAUSE


def _listing(pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > LISTING:
            raise NetworkError(f"the hub answered with more than {human_bytes(LISTING)} where it lists a repository")
        yield piece


def _at_a_pace(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Raises TimeoutError where a file trickles in; whoever fetches it tries again, going on where it stopped."""
    began, size = time.monotonic(), 0
    for piece in pieces:
        yield piece
        size += len(piece)
        if (passed := time.monotonic() - began) > WHOLE:
            if size < SLOWEST * passed:
                raise TimeoutError(f"only {human_bytes(size)} in {passed:.0f} s")
            began, size = time.monotonic(), 0
