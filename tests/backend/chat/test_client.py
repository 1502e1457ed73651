"""The chat client over real sockets: budgets, time limits, journals, forms of answers, log-probabilities.

Why it can be trusted: a loopback server notes every request it was sent and answers from a list; what a budget says was
spent is counted by that server, and times are those of the wall. What the reasoner asks of it is in
`tests/backend/reasoner/test_endpoint.py`, which also asks a real server.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from backend.chat.address import Address, Label, make_address
from backend.chat.budget import Budget
from backend.chat.client import Client, NotUnderstood
from backend.chat.replies import ChatReply, picture_part, text_part
from backend.errors import BudgetError, NetworkError, ReplyError, TimeoutExpiredError, UsageError
from tests.backend.scripted_endpoint import Answer, Endpoint, completion, failure

HELLO = [{"role": "user", "content": "hello"}]
LABELS = {name: Label(f"judge.{name}", f"--judge-{name}") for name in
          ("base_url", "model", "key", "timeout", "limit", "max_tokens")}  # fmt: skip


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def address(url: str, **changes: Any) -> Address:
    given = {"key": None, "timeout": 5.0, "max_tokens": 64, "labels": LABELS, **changes}
    return make_address(url, "eye", **given)


def counted(content: str, tokens_in: int, tokens_out: int) -> Answer:
    answer = completion(content)
    return replace(answer, body={**answer.body, "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}})


# --------------------------------------------------------------------------------------------------- the caller's words


def test_errors_speak_of_the_callers_own_settings() -> None:
    slow = replace(completion("late"), delay=0.5)
    with Endpoint(slow) as endpoint, pytest.raises(TimeoutExpiredError, match=r"within 0\.1 s") as caught:
        Client(address(endpoint.url, timeout=0.1)).complete(HELLO)
    assert caught.value.hint == "raise --judge-timeout"
    with Endpoint(failure(401, "no")) as endpoint, pytest.raises(UsageError, match="asks for a key") as refused:
        Client(address(endpoint.url)).complete(HELLO)
    assert refused.value.hint == "set --judge-key"
    with pytest.raises(UsageError, match=r"judge\.limit = 0 is outside"):
        address("http://127.0.0.1/v1", limit=0.0)
    with pytest.raises(UsageError, match=r"judge\.base_url is no web address"):
        address("nowhere")


# -------------------------------------------------------------------------------------------------------------- limits


@contextmanager
def trickle(head: bytes, pause: float) -> Iterator[str]:
    """A server whose answer never ends: a blank every `pause` seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head)
                while not done.wait(pause):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        done.set()
        thread.join(5)


def test_an_answer_that_trickles_in_ends_at_the_limit_in_all() -> None:
    """Every blank comes well within the timeout, which therefore never ends it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
    with trickle(head, pause=0.05) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutExpiredError, match=r"had not answered in full after 0\.4 s") as caught:
            Client(address(url, limit=0.4)).complete(HELLO)
        assert 0.4 <= time.monotonic() - began < 2 and caught.value.hint == "raise --judge-limit"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX-Slow:",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999\r\n\r\n{",
    ],
)
def test_where_no_limit_is_said_what_trickles_in_ends_too(head: bytes) -> None:
    """Headers as well, of which the package's time limits see one read at a time."""
    with trickle(head, pause=0.02) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutExpiredError, match=r"had not answered in full after 0\.5 s") as caught:
            Client(address(url, timeout=0.05)).complete(HELLO)
        assert time.monotonic() - began < 3 and caught.value.hint == "raise --judge-timeout"


def test_a_question_is_sent_on_to_no_other_host() -> None:
    """The package follows a 307 with all that was asked, pictures among it; within the host it may."""
    with Endpoint(completion("no")) as other, Endpoint(completion("yes")) as same:
        away = Answer(body="", status=307, headers={"Location": other.url.replace("127.0.0.1", "localhost") + "/x"})
        with Endpoint(away) as endpoint, pytest.raises(NetworkError, match="another host, 'localhost'"):
            Client(address(endpoint.url)).complete(HELLO)
        assert other.asked == []
        moved = Answer(body="", status=307, headers={"Location": same.url + "/x"})
        with Endpoint(moved) as endpoint:
            assert Client(address(endpoint.url)).complete(HELLO).text == "yes"


def test_of_an_error_without_end_only_its_beginning_is_read() -> None:
    """The package reads it whole: what is promised here would take a minute and all memory."""
    head = b"HTTP/1.1 400 Bad\r\nContent-Type: text/plain\r\nContent-Length: 99999999999\r\n\r\n" + b"no " * 50_000
    with trickle(head, pause=30) as url, pytest.raises(UsageError, match=r"refused the request \(400\)"):
        Client(address(url, timeout=5.0)).complete(HELLO)


@pytest.mark.parametrize("said", ["{key}", "{upper}", "a part: {part}…", "twice {upper}{key}"])
def test_a_key_is_in_no_message_in_any_case_or_part(said: str) -> None:
    key = "sk-Proj-aB3xY9qLm2"
    text = said.format(key=key, upper=key.upper(), part=key[3:14].lower())
    with Endpoint(failure(400, f"the key {text} is not good")) as endpoint, pytest.raises(UsageError) as caught:
        Client(address(endpoint.url, key=key)).complete(HELLO)
    shown = str(caught.value).lower()
    assert "***" in shown and "is not good" in shown
    assert not any(key.lower()[at : at + 6] in shown for at in range(len(key) - 5))


def test_an_answer_that_breaks_off_cannot_be_reached() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
    with trickle(head, pause=30) as url, pytest.raises(TimeoutExpiredError, match=r"no answer within 0\.2 s"):
        Client(address(url, timeout=0.2)).complete(HELLO)


def test_pauses_beyond_the_limit_in_all_are_not_waited_for() -> None:
    waited: list[float] = []
    with Endpoint(failure(503, "busy", retry_after="7")) as endpoint, pytest.raises(NetworkError, match="failed"):
        Client(address(endpoint.url, limit=3.0), wait=waited.append).complete(HELLO)
    assert waited == [] and len(endpoint.asked) == 1


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.chat.client.MAX_ANSWER", 1000)
    with Endpoint(completion("x" * 2000)) as endpoint, pytest.raises(ReplyError, match="more than 1,000 bytes"):
        Client(address(endpoint.url)).complete(HELLO)


# -------------------------------------------------------------------------------------------------------------- budget


def test_a_budget_of_requests_holds_for_all_threads_that_share_it() -> None:
    budget = Budget(calls=10)

    def ask(_: int) -> bool:
        try:
            client.complete(HELLO)
        except BudgetError:
            return False
        return True

    with Endpoint(completion("yes")) as endpoint, ThreadPoolExecutor(8) as pool:
        client = Client(address(endpoint.url), budget=budget)
        answered = list(pool.map(ask, range(25)))
    assert sum(answered) == len(endpoint.asked) == budget.sent == 10


def test_requests_that_a_busy_server_refuses_count() -> None:
    with Endpoint(failure(503, "busy"), completion("yes")) as endpoint:
        client = Client(address(endpoint.url), wait=lambda _: None, budget=Budget(calls=2))
        assert client.complete(HELLO).text == "yes"
        with pytest.raises(BudgetError, match="the budget of 2 requests is spent") as caught:
            client.complete(HELLO)
    assert caught.value.exit_code == 1 and len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("budget", "said"),
    [(lambda: Budget(tokens=1000), "1,000 tokens"),
     (lambda: Budget(dollars=0.01, price_in=2.0, price_out=8.0), r"\$0\.01")],
)  # fmt: skip
def test_tokens_and_money_are_what_the_server_counted(budget: Callable[[], Budget], said: str) -> None:
    """500 tokens in and 100 out, twice over the limit of either after two answers: $0.0018 each is not."""
    shared = budget()
    with Endpoint(counted("yes", 500, 100)) as endpoint:
        client = Client(address(endpoint.url), budget=shared)
        with pytest.raises(BudgetError, match=said):
            for _ in range(20):
                client.complete(HELLO)
    answers = len(endpoint.asked)
    assert (shared.tokens_in, shared.tokens_out) == (500 * answers, 100 * answers)
    assert answers == (2 if shared.tokens else 6)  # 2 x 600 >= 1,000; 6 x (500 x $2 + 100 x $8) / 1e6 = $0.0108


def test_a_limit_that_cannot_be_kept_is_an_error_and_the_answer_is_not_lost() -> None:
    kept: list[ChatReply] = []
    with Endpoint(completion("yes")) as endpoint, pytest.raises(ReplyError, match="how many tokens it took"):
        Client(address(endpoint.url), budget=Budget(tokens=1000)).complete(HELLO, on_answer=kept.append)
    assert [reply.text for reply in kept] == ["yes"]
    with pytest.raises(UsageError, match="needs the prices"):
        Budget(dollars=1.0)


# ------------------------------------------------------------------------------------------- forms, journals, pictures

SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}


def read_score(reply: ChatReply, level: str) -> int:
    try:
        return int(json.loads(reply.text)["score"])
    except (ValueError, KeyError, TypeError):
        raise NotUnderstood(ReplyError(f"no score: {reply.text}")) from None


def test_every_answer_is_given_to_the_journal_before_it_is_judged() -> None:
    kept: list[str] = []
    with Endpoint(completion("seven"), completion("7 of 10"), completion('{"score": 7}')) as endpoint:
        client = Client(address(endpoint.url))
        score = client.ask(lambda level: HELLO, SCHEMA, read_score, on_answer=lambda reply: kept.append(reply.text))
    assert score == 7 and kept == ["seven", "7 of 10", '{"score": 7}']
    with Endpoint(completion("seven")) as endpoint, pytest.raises(ReplyError, match="no score: seven"):
        Client(address(endpoint.url)).ask(lambda level: HELLO, SCHEMA, read_score)
    assert len(endpoint.asked) == 3


def test_what_one_client_learns_another_does_not_know() -> None:
    with Endpoint(completion("7"), completion("7"), completion('{"score": 7}')) as endpoint:
        client = Client(address(endpoint.url))
        client.ask(lambda level: HELLO, SCHEMA, read_score)
        client.ask(lambda level: HELLO, SCHEMA, read_score)
        Client(address(endpoint.url)).ask(lambda level: HELLO, SCHEMA, read_score)
    forms = [body.get("response_format", {}).get("type") for body in endpoint.asked]
    assert forms == ["json_schema", "json_object", None, None, "json_schema"]
    assert endpoint.asked[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_pictures_go_within_a_message_as_they_are() -> None:
    content = [text_part("what is this?"), picture_part(b"\x89PNG", "image/png")]
    with Endpoint(completion("a cat")) as endpoint:
        assert Client(address(endpoint.url)).complete([{"role": "user", "content": content}]).text == "a cat"
    assert endpoint.asked[0]["messages"][0]["content"] == [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]


@pytest.mark.parametrize("refused", ["logprobs", "top_logprobs"])
def test_log_probabilities_where_the_endpoint_has_them(refused: str) -> None:
    """`top_logprobs` without `logprobs` is an error at OpenAI: it goes with it, and not the other way round."""
    token = {"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "yes", "logprob": -0.1}]}
    answer = completion("yes")
    answer.body["choices"][0]["logprobs"] = {"content": [token]}
    with Endpoint(answer) as endpoint:
        reply = Client(address(endpoint.url)).complete(HELLO, chances=5)
    assert (endpoint.asked[0]["logprobs"], endpoint.asked[0]["top_logprobs"]) == (True, 5)
    assert reply.chances is not None and reply.chances[0].others == {"yes": -0.1}
    with Endpoint(failure(400, f"{refused} is not supported"), completion("yes")) as endpoint:
        assert Client(address(endpoint.url)).complete(HELLO, chances=5).chances is None
    sent = {"logprobs", "top_logprobs"} & endpoint.asked[-1].keys()
    assert sent == (set() if refused == "logprobs" else {"logprobs"})
