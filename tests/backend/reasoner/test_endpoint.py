"""The endpoint speaker against a scripted loopback server, and llama-cpp-python's own with the shipped model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend import presets
from backend.errors import LensError, NetworkError, ReplyError, TimeoutExpiredError, UsageError
from backend.paths import nano_dir
from backend.reasoner.address import reasoner_address
from backend.reasoner.answers import MODEL_REFUSAL, Draft, read_json
from backend.reasoner.endpoint import EndpointSpeaker
from backend.reasoner.refine import RewritePlan, Task, make_plan
from backend.settings import ReasonerSettings
from backend.types import ReasonerMode
from tests.backend.scripted_endpoint import Answer, Endpoint, completion, decision, failure

KEY = "sk-very-secret"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stays loopback; nothing of the machine's OpenAI settings is read."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def settings(url: str, **changes: Any) -> ReasonerSettings:
    return replace(ReasonerSettings(base_url=url, model="m", timeout=5.0), **changes)


def plan(**changes: Any) -> RewritePlan:
    chosen = settings("http://127.0.0.1:1/v1", **changes)
    return make_plan(chosen, presets.get("lens"), "lens", mode=ReasonerMode.api, files=None)


class Ask:
    """One speaker on an endpoint; `said` is its talk, `waited` what it would have slept."""

    def __init__(self, endpoint: Endpoint | str, **changes: Any) -> None:
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        self.said, self.waited = list[str](), list[float]()
        self.speaker = EndpointSpeaker(
            reasoner_address(settings(url, **changes)), say=self.said.append, wait=self.waited.append
        )

    def __call__(self, request: str = "a cat", **changes: Any) -> Draft:
        return self.speaker.ask(Task(request=request, plan=plan(**changes)))


def formats(endpoint: Endpoint) -> list[str | None]:
    return [body.get("response_format", {}).get("type") for body in endpoint.asked]


# ------------------------------------------------------------------------------------------------------ what is asked


def test_the_question_holds_instructions_request_schema_and_limits() -> None:
    with Endpoint(decision("a red cat")) as endpoint:
        assert Ask(endpoint, api_key=KEY)("a cat 🎈 猫", seed=4).prompt == "a red cat"
    (body,) = endpoint.asked
    system, user = body["messages"]
    assert (system["role"], user) == ("system", {"role": "user", "content": "a cat 🎈 猫"})
    assert system["content"] == plan().instructions("json")
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["decision", "prompt", "rule"]
    assert (body["model"], body["max_tokens"], body["seed"], body["reasoning_effort"]) == ("m", 2048, 4, "low")
    assert "temperature" not in body  # the endpoint's own, unless it is set
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    with Endpoint(decision("a red cat")) as endpoint:
        Ask(endpoint)(temperature=0.5)
    assert endpoint.asked[0]["temperature"] == 0.5 and "authorization" not in endpoint.headers[0]


def test_a_key_meant_for_openai_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "my-organisation")
    with Endpoint(decision("a red cat")) as endpoint:
        Ask(endpoint)()
    assert KEY not in str(endpoint.headers) and "my-organisation" not in str(endpoint.headers)
    assert reasoner_address(settings("https://api.openai.com/v1")).key == KEY
    assert reasoner_address(settings("http://api.openai.com/v1")).key is None  # not encrypted
    assert KEY not in repr(reasoner_address(settings("https://api.openai.com/v1")))


# ------------------------------------------------------------------------------------------------------- stepping down


def test_a_server_without_schemas_is_asked_for_json_and_remembered() -> None:
    def strict(body: dict[str, Any]) -> Answer:
        if body.get("response_format", {}).get("type") == "json_schema":
            return failure(400, "response_format json_schema is not supported")
        return decision("a red cat")

    with Endpoint(strict) as endpoint:
        ask = Ask(endpoint)
        assert ask().prompt == ask("a dog").prompt == "a red cat"
        assert ask.said == ["the endpoint does not do json_schema; trying json_object"]
        assert formats(endpoint) == ["json_schema", "json_object", "json_object"]
        Ask(endpoint, model="other")()  # another model there may do better
    assert formats(endpoint)[3:] == ["json_schema", "json_object"]


def test_a_server_that_ignores_every_format_ends_in_plain_text() -> None:
    with Endpoint(completion("A red cat sits on a wall.")) as endpoint:
        ask = Ask(endpoint)
        assert ask().prompt == ask().prompt == "A red cat sits on a wall."
    assert formats(endpoint) == ["json_schema", "json_object", None, None]
    assert endpoint.asked[2]["messages"][0]["content"] == plan().instructions("plain")


def test_optional_parameters_that_are_refused_by_name_are_left_out() -> None:
    def picky(body: dict[str, Any]) -> Answer:
        for name in ("max_tokens", "seed", "reasoning_effort", "chat_template_kwargs", "temperature"):
            if name in body:
                return failure(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        return decision("a red cat")

    with Endpoint(picky) as endpoint:
        ask = Ask(endpoint, max_tokens=99)
        draft = ask(temperature=0.1)
        assert draft.prompt == "a red cat"
        # What had no say in the answer must not stand in a picture's record, and a person who set it is told.
        assert draft.left_out == ("temperature", "seed")
        assert draft.notes == ("m does not take the temperature 0.1; its own was used",)
        count = len(endpoint.asked)
        ask(temperature=0.1)
    assert len(endpoint.asked) == count + 1 == 7
    assert endpoint.asked[-1]["max_completion_tokens"] == 99 and formats(endpoint)[-1] == "json_schema"


# ---------------------------------------------------------------------------------------------------- what comes back


def test_json_in_the_thoughts_counts_and_thoughts_alone_never() -> None:
    thought = json.dumps({"decision": "rewrite", "prompt": "a red cat", "rule": None})
    with Endpoint(completion("", reasoning_content=thought)) as endpoint:
        assert Ask(endpoint)().prompt == "a red cat"
    with (
        Endpoint(completion(None, reasoning_content="The user wants a cat, so a red cat.")) as endpoint,
        pytest.raises(ReplyError, match="gave no answer, only thoughts or nothing"),
    ):
        Ask(endpoint)()
    assert formats(endpoint) == ["json_schema", "json_object", None]
    with (
        Endpoint(completion("analysisThe user wants a cat")) as endpoint,
        pytest.raises(ReplyError, match="only thoughts"),
    ):
        Ask(endpoint)()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "thought until its budget was gone at 7 tokens"), ('{"decision": "rewrite", "pro', "the answer was cut at 7"),
     ("A red cat sits on a", "the answer was cut at 7")],
)  # fmt: skip
def test_what_the_budget_cut_is_an_error_at_once(content: str, message: str) -> None:
    with Endpoint(completion(content, finish="length")) as endpoint, pytest.raises(ReplyError, match=message) as caught:
        Ask(endpoint, max_tokens=7)()
    assert len(endpoint.asked) == 1 and "LENS_REASONER__MAX_TOKENS" in str(caught.value.hint)


def test_a_decision_before_the_cut_still_counts() -> None:
    padded = '{"decision": "rewrite", "prompt": "a red cat", "rule": null}' + " \n" * 500
    with Endpoint(completion(padded, finish="length")) as endpoint:
        assert Ask(endpoint)().prompt == "a red cat"


@pytest.mark.parametrize(
    "answer",
    [
        completion("I'm sorry, but I can't help with that."),
        completion(None, refusal="I can't help with that."),
        completion("", finish="content_filter"),
        completion('{"decision": "rewrite", "prompt": "I cannot draw this.", "rule": null}'),
    ],
)
def test_a_models_own_refusal_is_a_refusal(answer: Answer) -> None:
    with Endpoint(answer) as endpoint:
        assert Ask(endpoint)() == Draft(decision="refuse", rule=MODEL_REFUSAL)
    assert len(endpoint.asked) == 1


def test_a_rewrite_beyond_the_limit_is_an_error_at_once() -> None:
    with Endpoint(decision("word " * 5000)) as endpoint, pytest.raises(ReplyError, match=r"has 24,999 characters"):
        Ask(endpoint)()
    assert len(endpoint.asked) == 1


def test_extra_keys_are_ignored() -> None:
    answer = completion('{"decision": "rewrite", "prompt": "a red cat", "rule": null, "safety": 1}')
    with Endpoint(answer) as endpoint:
        draft = Ask(endpoint)()
    assert draft.prompt == "a red cat" and "'safety'" in draft.notes[0]


# -------------------------------------------------------------------------------------------------------- what breaks


def expect(endpoint: Endpoint, kind: type[LensError], match: str, **changes: Any) -> tuple[LensError, Ask]:
    with endpoint:
        ask = Ask(endpoint, **changes)
        with pytest.raises(kind, match=match) as caught:
            ask()
    assert KEY not in f"{caught.value} {caught.value.hint}"
    return caught.value, ask


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_or_missing(status: int) -> None:
    answer = failure(status, f"Incorrect API key provided: {KEY}")
    error, _ = expect(Endpoint(answer), UsageError, rf"refuses the key \({status}\)", api_key=KEY)
    assert "LENS_REASONER__API_KEY" in str(error.hint)
    expect(Endpoint(answer), UsageError, rf"asks for a key \({status}\)")


def test_too_many_requests_waits_as_long_as_it_is_told_and_not_forever() -> None:
    with Endpoint(failure(429, "slow down", retry_after="7"), failure(503, "busy"), decision("a red cat")) as endpoint:
        ask = Ask(endpoint)
        assert ask().prompt == "a red cat"
    assert ask.waited == [7.0, 2.0] and "asking again in 7 s" in ask.said[0]
    _, ask = expect(Endpoint(failure(429, "slow down")), NetworkError, r"over its limit of requests \(429\)$")
    assert ask.waited == [1.0, 2.0]
    _, ask = expect(Endpoint(failure(429, "no", retry_after="3600")), NetworkError, "asks to wait 3600 s")
    assert ask.waited == []


def test_a_web_page_is_named_as_one() -> None:
    page = Answer(body="<!DOCTYPE html><html><body>Welcome</body></html>", kind="text/html")
    error, _ = expect(Endpoint(page), UsageError, "answered with a web page, not with JSON")
    assert "/v1" in str(error.hint)
    expect(Endpoint(Answer(body="hello", kind="text/plain")), UsageError, "answered with plain text")


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Answer(body="{not json"), ReplyError, "something that is no JSON"),
        (Answer(body={"models": []}), ReplyError, "holds no choices"),
        (Answer(body={"choices": []}), ReplyError, "holds no choices"),
        (Answer(body=[1, 2]), ReplyError, "holds no choices"),
        (failure(404, "no such model"), UsageError, r"knows no model 'm', or is no endpoint \(404\)"),
        (failure(413, f"too long {KEY}"), UsageError, r"refused the request \(413\)"),
        (failure(400, "context length exceeded"), UsageError, r"refused the request \(400\).*context length exceeded"),
        (failure(500, "out of cheese"), NetworkError, r"failed \(500\).*out of cheese"),
        (failure(502, "bad gateway"), NetworkError, r"failed \(502\)"),
    ],
)
def test_other_failures_are_said(answer: Answer, kind: type[LensError], message: str) -> None:
    expect(Endpoint(answer), kind, message, api_key=KEY)


def test_a_slow_endpoint_is_a_timeout() -> None:
    slow = Endpoint(replace(decision("late"), delay=0.6))
    error, _ = expect(slow, TimeoutExpiredError, "gave no answer within 0.2 s", timeout=0.2)
    assert error.exit_code == 4 and "LENS_REASONER__TIMEOUT" in str(error.hint)


def test_an_endpoint_that_is_down_cannot_be_reached() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port meanwhile
        with pytest.raises(NetworkError, match=r"cannot reach http://127\.0\.0\.1") as caught:
            Ask(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")()
    assert caught.value.exit_code == 3 and "LENS_REASONER__BASE_URL" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("url", "changes", "message"),
    [
        ("", {}, "needs reasoner.base_url"),
        ("http://x/v1", {"model": ""}, "needs reasoner.model"),
        ("localhost:8080/v1", {}, "no web address"),
        ("ftp://x/v1", {}, "no web address"),
        ("http://x:port/v1", {}, "no web address"),
        (f"http://me:{KEY}@x/v1", {}, "holds a user or a password"),
        ("http://x/v1", {"timeout": 0.0}, "outside 0..3600"),
        ("http://x/v1", {"api_key": f"{KEY}\nX-More: 1"}, "is no key"),
        ("http://x/v1", {"api_key": "schlüssel"}, "is no key"),
    ],
)
def test_an_address_that_cannot_work_is_refused(url: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        reasoner_address(settings(url, **changes))
    assert KEY not in f"{caught.value} {caught.value.hint}"


# ------------------------------------------------------------------------------------------------------- a real server

# Nano's file carries no chat template. This one is `backend.text.harmony.conversation`, with the thought already made,
# so that a server which enforces JSON from the first token on leaves the model where it expects to be.
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}<|start|>system<|message|>You are Lens.\nKnowledge cutoff: "
    "2024-06\nCurrent date: 2026-05-26\n\nReasoning: low\n\n# Valid channels: analysis, commentary, final. Channel "
    "must be included for every message.<|end|><|start|>developer<|message|># Instructions\n\n{{ m.content }}\n\n"
    "<|end|>{% elif m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "<|start|>assistant<|channel|>analysis<|message|>This says enough. Keep it.<|end|><|start|>assistant<|channel|>"
    "final<|message|>"
)
SERVER = """
import sys, uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
gguf, template, port, key = sys.argv[1:]
model = ModelSettings(model=gguf, model_alias="nano", n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False,
                      chat_format="hf-tokenizer-config", hf_tokenizer_config_path=template)
app = create_app(server_settings=ServerSettings(api_key=key), model_settings=[model])
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error")
"""


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-cpp-python's own server with Nano's language model, in a child on loopback; its base URL."""
    folder = tmp_path_factory.mktemp("server")
    config = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "chat_template": TEMPLATE}
    (folder / "template.json").write_text(json.dumps(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(nano_dir() / "text_encoder.gguf"), str(folder / "template.json"), str(port), KEY]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", SERVER, *words],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        try:
            limit = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/v1/models"):
                assert child.poll() is None and time.monotonic() < limit, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.terminate()
            child.wait(10)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"}), timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.mark.nano
def test_a_real_server_with_the_shipped_model(real_server: str) -> None:
    """It refuses json_schema (422) and enforces JSON; what we read is what it says to a plain HTTP client."""
    chosen = settings(real_server, model="nano", api_key=KEY, system_prompt="nano", temperature=0.0, max_tokens=300)
    mine = make_plan(chosen, presets.get("nano"), "nano", mode=ReasonerMode.api, files=None)
    said: list[str] = []
    speaker = EndpointSpeaker(reasoner_address(replace(chosen, timeout=60.0)), say=said.append)
    request = "two red balls"
    draft = speaker.ask(Task(request=request, plan=mine))
    assert said == ["the endpoint does not do json_schema; trying json_object"]
    body = {
        "model": "nano",
        "messages": [
            {"role": "system", "content": mine.instructions("json")},
            {"role": "user", "content": request},
        ],
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 300,
        "response_format": {"type": "json_object"},
    }
    plain = urllib.request.Request(
        f"{real_server}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(plain, timeout=60) as answer:
        content = json.load(answer)["choices"][0]["message"]["content"]
    assert draft == read_json(content)


@pytest.mark.nano
def test_a_real_server_refuses_a_wrong_key(real_server: str) -> None:
    with pytest.raises(UsageError, match=r"refuses the key \(401\)"):
        Ask(real_server, model="nano", api_key="wrong")()
