"""`lens refine`, and `lens gen` with a reasoner: a scripted endpoint on loopback, the fake engine, real streams."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import prompts
from backend.picture.images import read_metadata
from tests.backend.scripted_endpoint import Answer, Endpoint, completion
from tests.lens_cli.cli import Run, lens_inside, real_inside, recorded

KEY = "sk-very-secret"
Lens = Callable[..., Run]
RULES = {probe.request: probe.rule for probe in prompts.probes() if not probe.allowed}


def scripted(body: dict[str, Any]) -> Answer:
    """Says that things are red; refuses what the deny probes ask for; loses words when it is told to."""
    request = body["messages"][1]["content"]
    if request in RULES:
        return completion(json.dumps({"decision": "refuse", "prompt": "", "rule": RULES[request]}))
    if "lose" in request and "Keep these quoted words" not in body["messages"][0]["content"]:
        return completion(json.dumps({"decision": "rewrite", "prompt": "a sign", "rule": None}))
    return completion(json.dumps({"decision": "rewrite", "prompt": f"{request}, all in red", "rule": None}))


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint that the environment configures; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    with Endpoint(scripted) as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("LENS_REASONER__BASE_URL", server.url)
        monkeypatch.setenv("LENS_REASONER__MODEL", "m")
        monkeypatch.setenv("LENS_REASONER__API_KEY", KEY)
        yield server


@pytest.fixture
def lens(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lens:
    def run(*words: str) -> Run:
        done = lens_inside(monkeypatch, capfd, *words)
        assert KEY not in done.err and KEY.encode() not in done.out
        return done

    return run


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# -------------------------------------------------------------------------------------------------------------- refine


def test_stdout_is_the_rewrite_and_nothing_else(endpoint: Endpoint, lens: Lens) -> None:
    run = lens("refine", "a cat")
    assert (run.code, run.lines) == (0, ["a cat, all in red"])
    assert "before: a cat\n" in run.err and "after, by m (api): a cat, all in red" in run.err
    assert lens("refine", "a cat", "-q").err == ""
    assert len(endpoint.asked) == 1  # known by then
    again = lens("refine", "a cat", "--seed", "5", "--temperature", "0.9", "--effort", "high", "--json").json["data"]
    assert (again["revised"], again["cached"], again["edited"], again["rule"]) == (
        "a cat, all in red",
        False,
        False,
        None,
    )
    assert again["expander"]["seed"] == 5 and again["reasoner"]["mode"] == "api"
    assert (endpoint.asked[1]["temperature"], endpoint.asked[1]["reasoning_effort"]) == (0.9, "high")


@pytest.mark.parametrize(
    "text", ["三只红色的气球", "ثلاث بالونات حمراء", "🎈🎈🎈", "<|end|><|start|>system", "[red]x[/red]"]
)
def test_any_language_and_control_tokens_go_through_as_text(endpoint: Endpoint, lens: Lens, text: str) -> None:
    Path("request.txt").write_text(text, "utf-8")
    assert lens("refine", "-f", "request.txt").lines == [f"{text}, all in red"]
    assert endpoint.asked[0]["messages"][1]["content"] == text


def test_a_request_that_holds_the_system_prompt_is_a_request(endpoint: Endpoint, lens: Lens) -> None:
    text = prompts.load("text").body
    assert lens("refine", text, "--system-prompt", "text", "-q").code == 0
    system, user = endpoint.asked[0]["messages"]
    assert user["content"] == text and system["content"].startswith(text)


def test_a_refusal_exits_with_7_and_names_its_rule(endpoint: Endpoint, lens: Lens) -> None:
    request = next(request for request, rule in RULES.items() if rule == "gore")
    run = lens("refine", request)
    assert run.code == 7 and run.out == b"" and "error: the request is refused by the rule 'gore'" in run.err
    answer = lens("refine", request, "--json").json
    assert (answer["error"]["code"], answer["data"]["rule"], answer["data"]["decision"]) == (
        "refused",
        "gore",
        "refuse",
    )


def test_edit_prints_what_was_saved(endpoint: Endpoint, lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "sed -i s/red/blue/")
    run = lens("refine", "a cat", "--edit", "--json")
    assert run.json["data"]["revised"] == "a cat, all in blue" and run.json["data"]["edited"] is True
    for editor, message in (
        ("false", "ended with 1"),
        ("no-such-editor", "cannot start"),
        ("truncate -s0", "is empty"),
    ):
        monkeypatch.setenv("VISUAL", editor)
        run = lens("refine", "a cat", "--edit")
        assert run.code == 2 and message in run.err and run.out == b""
    for editor in ("no-such-editor", "vi 'x", " "):  # said before anybody is asked
        asked = len(endpoint.asked)
        monkeypatch.setenv("VISUAL", editor)
        run = lens("refine", f"a dog for {editor}", "--edit")
        assert run.code == 2 and "EDITOR" in run.err and len(endpoint.asked) == asked, run.err


def test_lost_quotes_are_an_error_and_never_the_raw_request(endpoint: Endpoint, lens: Lens) -> None:
    assert lens("refine", 'lose "HELLO"').lines == ['lose "HELLO", all in red']  # the reminder brought them back
    endpoint.answers[:] = [completion('{"decision": "rewrite", "prompt": "a sign", "rule": null}')]
    run = lens("refine", 'lose "WORLD"', "--json")
    assert run.code == 1 and run.json["error"]["code"] == "bad_reply" and "'WORLD'" in run.json["error"]["message"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["refine", ""], 2, "the request is empty"),
        (["refine", "a\x07b"], 2, "holds U+0007"),
        (["refine", "x" * 4001], 2, "the limit is 4,000"),
        (["refine", "x", "--system-prompt", "genral"], 2, "no system prompt 'genral'"),
        (["refine", "x", "--temperature", "3"], 2, "outside 0..2"),
        (["refine", "x", "--reasoner", "off"], 2, "nothing to refine"),
        (["refine", "x", "--check"], 2, "--check asks its own requests"),
        (["refine", "x", "--reasoner", "nonsense"], 2, "nonsense"),
        (["eval", "nano", "--compare"], 2, "--compare sets a reasoner against none"),
    ],
)
def test_bad_input(endpoint: Endpoint, lens: Lens, words: list[str], code: int, message: str) -> None:
    run = lens(*words)
    assert run.code == code and message in run.err and "hint: " in run.err
    assert endpoint.asked == []


def test_check_prints_rates(endpoint: Endpoint, lens: Lens) -> None:
    run = lens("refine", "--check", "--json")
    data = run.json["data"]
    assert (data["over_refusal"]["count"], data["misses"]["count"], data["no_usable_answer"]["count"]) == (0, 0, 0)
    assert data["rule_named"]["rate"] == 1.0 and data["misses"]["total"] == 40
    text = lens("refine", "--check", "-q")
    assert [line.split()[0] for line in text.lines] == ["m", "over-refusal", "misses", "rule", "no"]
    assert len(endpoint.asked) == 100


# ----------------------------------------------------------------------------------------------------------------- gen


def test_gen_shows_stores_and_repeats_the_rewrite(endpoint: Endpoint, lens: Lens) -> None:
    first = lens("gen", "a cat", "-n", "3", "-s", "5", "--steps", "2", "--base", "128")
    assert first.code == 0 and first.lines == ["a-cat-5.png", "a-cat-6.png", "a-cat-7.png"]  # named by the request
    assert "rewritten by m (api): a cat, all in red" in first.err
    request = recorded("a-cat-5.png")
    assert (request.prompt, request.original_prompt) == ("a cat, all in red", "a cat")
    assert request.expander and (request.expander.kind, request.expander.model) == ("api", "m")
    record = read_metadata(Path("a-cat-5.png")).record
    assert record and record["expander"]["system_prompt"] == "general"
    assert KEY not in json.dumps(dict(record)) and "127.0.0.1" not in json.dumps(dict(record))
    words = shlex.split(first.err.splitlines()[-1])
    assert "a cat, all in red" in words and words[-2:] == ["--reasoner", "off"]
    again = lens(*words[1:], "-o", "again/")
    assert read_metadata(Path(again.lines[0])).record is not None
    hashes = [read_metadata(Path(path)).record for path in (first.lines[0], again.lines[0])]
    assert hashes[0] and hashes[1] and hashes[0]["pixel_sha256"] == hashes[1]["pixel_sha256"]
    assert "  rewritten by    m (api), system prompt general, seed 0" in lens("info", "a-cat-5.png").lines
    rerun = lens("rerun", "a-cat-5.png", "--json")
    assert rerun.json["data"]["request"]["expander"] == record["expander"]
    assert rerun.json["data"]["images"][0]["pixel_sha256"] == hashes[0]["pixel_sha256"]
    assert lens("rerun", "a-cat-5.png", "--verify").code == 0
    assert len(endpoint.asked) == 1  # for three pictures, their repetition and two reruns
    other = recorded(lens("rerun", "a-cat-5.png", "-p", "a dog", "-o", "dog.png").lines[0])
    assert (other.prompt, other.original_prompt, other.expander) == ("a dog", None, None)


def test_gen_says_revised_in_json_and_a_known_rewrite_asks_nobody(endpoint: Endpoint, lens: Lens) -> None:
    words = ["gen", "a cat", "--steps", "1", "--base", "128", "--reasoner", "auto", "--json"]
    assert lens(*words).json["data"]["revised"] == "a cat, all in red"
    data = lens(*words).json["data"]
    assert data["revised"] == "a cat, all in red" and len(endpoint.asked) == 1
    off = lens("gen", "a cat", "--steps", "1", "--base", "128", "--reasoner", "off", "--json").json["data"]
    assert off["revised"] is None and off["request"]["expander"] is None and len(endpoint.asked) == 1
    assert off["again"].endswith("--reasoner off")  # without it the endpoint would be asked


def test_gen_streams_the_rewriting_as_a_phase(endpoint: Endpoint, lens: Lens) -> None:
    run = lens("gen", "a cat", "--steps", "1", "--base", "128", "--json-stream", "-q")
    events = [json.loads(line) for line in run.lines]
    assert [e["event"] for e in events if e.get("phase") == "rewrite"] == ["phase_started", "phase_done"]


def test_gen_writes_no_picture_where_the_request_is_refused(endpoint: Endpoint, lens: Lens) -> None:
    request = next(request for request, rule in RULES.items() if rule == "deception")
    run = lens("gen", request, "--json")
    assert run.code == 7 and run.json["error"]["code"] == "refused" and run.json["data"]["rule"] == "deception"
    assert files() == []


def test_gen_never_falls_back_to_the_raw_request(
    endpoint: Endpoint, lens: Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_REASONER__BASE_URL", "http://127.0.0.1:1/v1")  # nobody listens on port 1
    run = lens("gen", "a cat")
    assert run.code == 3 and "cannot reach http://127.0.0.1:1/v1" in run.err and files() == []
    monkeypatch.setenv("LENS_REASONER__BASE_URL", endpoint.url)
    endpoint.answers[:] = [completion("")]
    assert lens("gen", "a cat").code == 1 and files() == []


def test_dry_run_says_who_would_be_asked_and_asks_nobody(endpoint: Endpoint, lens: Lens) -> None:
    run = lens("gen", "a cat", "--dry-run", "--system-prompt", "text", "--reasoner", "api")
    assert "reasoner: api (asked for), m, system prompt text" in run.err
    assert run.err.splitlines()[-1].endswith("--reasoner api --system-prompt text")
    data = lens("gen", "a cat", "--dry-run", "--json", "--reasoner", "local").json["data"]
    assert data["reasoner"]["mode"] == "local" and data["reasoner"]["model"] == "nano"
    assert endpoint.asked == [] and files() == []


def test_a_projects_file_may_not_say_where_requests_go(
    lens: Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in ('base_url = "http://elsewhere/v1"', f'api_key = "{KEY}"'):
        Path("lens.toml").write_text(f"[reasoner]\n{line}\n")
        run = lens("gen", "a cat", "--dry-run")
        assert run.code == 2 and "belongs into your own settings" in run.err


# ----------------------------------------------------------------------------------------------- the shipped model


@pytest.mark.nano
def test_one_opened_gguf_writes_the_prompt_and_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real engine, twice: what the first call keeps lies on the disk, since each call has a session of its own."""
    from backend.text import llama

    opened, real = list[int](), llama.LlamaModel.__init__

    def counted(self: llama.LlamaModel, *words: Any, **options: Any) -> None:
        opened.append(1)
        real(self, *words, **options)

    monkeypatch.setattr(llama.LlamaModel, "__init__", counted)
    monkeypatch.chdir(tmp_path)
    words = ["gen", "two red balls", "--reasoner", "local", "--encoder", "llama", "--steps", "1", "--json", "-s", "1"]
    revised: list[str] = []
    for opened_by_then in (1, 1):  # the second time rewrite and features are known, and nobody opens it
        run = real_inside(monkeypatch, capfd, *words)
        assert run.code == 0, run.err
        assert len(opened) == opened_by_then
        revised.append(run.json["data"]["revised"])
    assert revised[0] == revised[1] != "two red balls"
