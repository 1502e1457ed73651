"""An endpoint that lies, in each mode of `tests/backend/hostile_endpoint.py`: what comes is a reply or an error of one
line, soon; the key is in no message, and nothing goes to another host.

Why it can be trusted: times are those of the wall, the other host is a socket that notes what arrives, and a mode that
gives neither a reply nor one of our errors fails the test, whatever it raises.
"""

from __future__ import annotations

import importlib
import time
import tracemalloc

import pytest

from backend.chat import client
from backend.chat.address import Label, make_address
from backend.chat.client import Client
from backend.chat.replies import ChatReply
from backend.errors import LensError, UsageError
from backend.foreign import documents
from tests.backend.hostile_endpoint import KEY, MODES, PROMPT, bomb, endpoint, says

LABELS = {name: Label(f"judge.{name}", f"--judge-{name}") for name in
          ("base_url", "model", "key", "timeout", "limit", "max_tokens")}  # fmt: skip
STILL = ("silence", "headers trickle", "body trickles", "continue without end")  # these end by the limit alone
LIMIT, PATIENCE = 0.2, 10.0  # seconds in all: of those, and of the others; the machine may be busy
ANSWERED = {  # there is a reply in it, which may be empty: what a caller makes of that is its own matter
    "NaN", "usage negative", "usage huge", "message a text", "content a number", "content a list", "tool calls",
    "half of a pair", "escapes", "no UTF-8", "keys twice", "cookies",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are reached at once."""
    importlib.import_module("openai")  # a second or more, and no part of a question's time
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(client, "MAX_ANSWER", 2**20)
    monkeypatch.setattr(documents, "VALUES", 10_000)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_ends_in_a_reply_or_in_one_line(mode: str) -> None:
    journal: list[ChatReply] = []
    reply, said = None, ""
    with endpoint(MODES[mode]) as scene:
        limit = LIMIT if mode in STILL else PATIENCE
        address = make_address(scene.url, "m", key=KEY, timeout=limit, limit=limit, max_tokens=9, labels=LABELS)
        began = time.monotonic()
        try:
            asked = [{"role": "user", "content": PROMPT}]
            reply = Client(address, wait=lambda seconds: None).complete(asked, on_answer=journal.append)
        except LensError as error:
            assert type(error) is not LensError and error.exit_code in (1, 2, 3, 4)
            assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 400
            said = f"{error} {error.hint}"
        assert time.monotonic() - began < limit + PATIENCE
        assert scene.elsewhere == []
    assert (reply is not None) == (mode in ANSWERED) and journal == ([] if reply is None else [reply])
    lowered, key = said.lower(), KEY.lower()
    assert not [at for at in range(len(key) - 5) if key[at : at + 6] in lowered]
    assert all(KEY.encode() in request for request in scene.asked)  # it had the key to lose
    if reply is not None:
        assert 0 <= reply.tokens_in < 2**31 and 0 <= reply.tokens_out < 2**31
        reply.content.encode()  # a journal can be written


def test_there_are_forty_modes() -> None:
    assert len(MODES) >= 40


def test_of_a_packed_error_only_its_beginning_is_unpacked() -> None:
    """What the package would read whole: 200 bytes that are 50 MB."""
    body = says(bomb(50_000_000, 3), 400, "text/plain", "Content-Encoding: gzip, gzip, gzip")
    with endpoint(body) as scene:
        address = make_address(scene.url, "m", key=KEY, timeout=20.0, limit=30.0, max_tokens=9, labels=LABELS)
        tracemalloc.start()
        with pytest.raises(UsageError, match=r"refused the request \(400\)"):
            Client(address).complete([{"role": "user", "content": PROMPT}])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000
