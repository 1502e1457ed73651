"""The parts of a search on their own: requests and leaks, guidelines, a writer and a generator behind endpoints, what a
search says before it begins, and its report."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from backend.chat.address import make_address
from backend.chat.client import Client
from backend.chat.replies import ChatReply
from backend.errors import BudgetError, FileError, NetworkError, ReplyError, UsageError
from prompts.guidelines import REFUSING, TASK, load_guidelines
from tests.backend.scripted_endpoint import Answer, Endpoint, completion, failure
from tests.train.search import fakes
from train.evals import nano_requests
from train.search import begin, requests
from train.search.analysis import Analysis, Failure, analyse, lost_content
from train.search.checks import locked_parts
from train.search.config import ImagesEndpoint, Limits, LocalModel, SearchConfig, Sizes, WriterEndpoint, quick
from train.search.drawn import SOURCES, draw_requests
from train.search.evaluator import Sample
from train.search.folder import SearchFolder
from train.search.generators import EndpointGenerator, SessionRewriter, picture_of
from train.search.parts import opened
from train.search.plan import check_size, costs, power_of
from train.search.report.findings import findings
from train.search.report.page import write_report
from train.search.run import run
from train.search.spending import RoleBudget, Spending
from train.search.writers.guidelines import GuidelineWriter
from train.search.writers.models import ModelWriter
from train.search.writers.task import Attempt, Task, WriterSpent
from train.world.requests import UNDONE_BY

SIZES = Sizes(train=30, validation=40, test=40, seeds=2, batch=10)


# ---------------------------------------------------------------------------------------------------- requests


def test_drawn_requests_are_split_by_item_and_no_benchmark_has_them() -> None:
    benchmarks = requests.known_benchmarks()
    drawn = draw_requests(110, 7, benchmarks, "nano")
    chosen = requests.split_requests(drawn, SIZES, 7)
    assert Counter(request.split for request in chosen) == {"train": 30, "validation": 40, "test": 40}
    items = {name: {(r.category, r.item) for r in chosen if r.split == name} for name in requests.SPLITS}
    assert not items["train"] & items["test"] and not items["validation"] & (items["train"] | items["test"])
    for name in requests.SPLITS:  # every category has its share, a quarter of these, give or take a few
        counting = sum(r.category == "counts" for r in chosen if r.split == name)
        assert abs(counting - 0.25 * getattr(SIZES, name)) <= 4
    assert chosen == requests.split_requests(tuple(reversed(drawn)), SIZES, 7)  # a function of what they are
    assert not list(requests.leaks(chosen, benchmarks))
    batches = [requests.batch_of(chosen[:30], 10, i) for i in range(4)]
    assert len({r.id for batch in batches[:3] for r in batch}) == 30 and batches[3] == batches[0]


def test_leaks_are_found_behind_an_opening_and_inside_a_sentence() -> None:
    def leaked(text: str) -> list[str]:
        made = replace(fakes.requests(1)[0], prompt=text)
        known = {"mine": ["a picture with a cat and a moon", "one two three four five six seven eight nine"]}
        return [name for _, name in requests.leaks([made], known)]

    assert leaked("A cat and a moon!") == leaked("a photo of a cat and a moon") == ["mine"]
    assert leaked("say: two three four five six seven eight nine, please") == ["mine"]
    assert leaked("a cat and two moons") == []


def line(**changes: Any) -> str:
    made = {"id": "a", "prompt": "a cat", "category": "c", "item": "i", "rubrics": [{"kind": "item", "text": "A cat?"}]}
    return json.dumps(made | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no request"),
        ("{", "line 1: no JSON"),
        ("[1]", "line 1: a request is a JSON object"),
        (line(rubrics=[]), "nothing to judge its pictures by"),
        (line(prompt=" "), "the prompt is empty"),
        (line(split="dev"), "the split 'dev' is none of"),
        (line(expectation={"things": [{"kind": "unicorn"}]}), "the expectation cannot be read"),
        (line(expectation={"things": [{"kind": "cat", "count": 99}]}), "the expectation cannot be read"),
        (line(expectation={"things": [{"kind": "cat", "word": "ART"}]}), "the verifier knows no"),
        (line(expectation={"things": [{"kind": "sign", "word": 7}]}), "the verifier knows no"),
        (line(expectation=[1]), "the expectation cannot be read"),
        (line() + "\n" + line(), "line 2: the id 'a' is there twice"),
        (line(wrong=1), "unknown key 'wrong'"),
    ],
)
def test_files_that_are_no_requests(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(FileError, match=re.escape(message)):
        requests.read_requests(path)


@pytest.mark.parametrize("source", SOURCES)
def test_every_drawn_request_is_read_as_it_was_written(source: str) -> None:
    """A search begins by writing the drawn requests and reading them; signs with words are among them."""
    made = draw_requests(60, 0, {}, source)
    assert any(thing.word for request in made if request.expectation for thing in request.expectation.things)
    assert [requests.parse_request(json.dumps(request.row())) for request in made] == list(made)


@pytest.mark.nano
def test_a_local_rewriter_has_its_models_adapter(tmp_path: Path) -> None:
    """As `lens gen --reasoner local` has it; another adapter is another rewriter, whose answers are not taken over."""
    config = SearchConfig(sizes=SIZES, generator=LocalModel(model="nano-turbo"))
    with opened(config, Spending(tmp_path / "spent.jsonl", Limits()), tmp_path, say=print) as who:
        rewriter = who.parts.rewriter
        assert isinstance(rewriter, SessionRewriter) and rewriter.plan.adapter is not None
        other = SessionRewriter(rewriter.session, replace(rewriter.plan, adapter="0" * 64), rewriter.resolved, "x")
        assert rewriter.plan.adapter in rewriter.identity and other.identity != rewriter.identity


def test_requests_in_other_words_ask_for_what_the_undone_words_say() -> None:
    """Held to `train.world.requests`: each has a twist, and undoing all gives the thing's own name and count."""
    made = draw_requests(300, 3, requests.known_benchmarks(), "nano-requests")[:300]
    assert {request.category for request in made} == set(UNDONE_BY)
    assert len({request.prompt for request in made}) == 300
    sums = [request for request in made if " and " in request.prompt and request.category == "sum"]
    assert all(r.expectation and any(thing.count > 1 for thing in r.expectation.things) for r in sums) and sums
    assert made == draw_requests(300, 3, requests.known_benchmarks(), "nano-requests")[:300]
    frozen = {prompt.brief for prompt in nano_requests.requests()}
    assert not frozen & {request.prompt for request in made}


def test_requests_of_a_file_keep_split_and_expectation(tmp_path: Path) -> None:
    wanted = {"things": [{"kind": "cat", "count": 2, "colour": "red"}], "relation": None}
    path = tmp_path / "set.jsonl"
    path.write_text(line(split="test", expectation=wanted, rubrics=[]))
    (made,) = requests.read_requests(path)
    assert made.split == "test" and made.expectation is not None and str(made.expectation.things[0]) == "two red cats"
    assert requests.parse_request(json.dumps(made.row())) == made
    with pytest.raises(UsageError, match="give 0 for the train split"):
        requests.split_requests([made], Sizes(train=1, validation=1, test=1, batch=1), 0)


def test_a_benchmarks_requests_are_refused_unless_one_knows(tmp_path: Path) -> None:
    rows = [json.loads(line(id=f"r{n}", item=f"i{n}", prompt=f"thing {n}")) for n in range(120)]
    path, other = tmp_path / "set.jsonl", tmp_path / "bench.txt"
    path.write_text("\n".join(map(json.dumps, rows)))
    other.write_text('thing 7\n{"prompt": "thing 9"}\n')
    config = replace(SearchConfig(judge=begin.EndpointJudge(model="m")), sizes=SIZES)
    with pytest.raises(UsageError, match="2 of these requests are prompts of bench"):
        begin.prepare(config, prompt=None, source=str(path), against=[other])
    assert begin.prepare(config, prompt=None, source=str(path), against=[other], knows=True).leaked == 2
    with pytest.raises(UsageError, match="the rules cannot judge"):
        begin.prepare(replace(config, judge=begin.RulesJudge()), prompt=None, source=str(path))


# ------------------------------------------------------------------------------------------ before anything is spent


def test_a_search_that_can_prove_nothing_is_refused_and_a_weak_one_is_said() -> None:
    usual = SearchConfig()
    assert not check_size(usual)
    with pytest.raises(UsageError, match="8 validation requests cannot prove anything"):
        check_size(replace(usual, sizes=replace(SIZES, validation=8)))
    with pytest.raises(UsageError, match="4 test requests cannot confirm anything"):
        check_size(replace(usual, sizes=replace(SIZES, test=4)))
    assert "exploratory" in check_size(quick(usual))[0]
    needs = costs(usual)
    assert (needs.baselines, needs.validation, needs.confirmation) == (1024, 512, 1024)
    assert needs.usual == 1024 + 10 * 96 + 5 * 512 + 1024
    with pytest.raises(UsageError, match="ends before the first candidate is judged") as caught:
        check_size(replace(usual, limits=Limits(pictures=needs.least - 1)))
    assert f"pictures={needs.least}" in str(caught.value.hint)
    check_size(replace(usual, limits=Limits(pictures=needs.least)))


def test_what_a_search_detects_is_told_with_its_count() -> None:
    config = SearchConfig()
    fresh, forked = (power_of(config, 0.27, measured=True, validated_before=n) for n in (0, 8))
    # Independent: (z(.975) + z(.8)) * .27 / 16 for the first, with z(1 - .05/90) for the ninth.
    assert fresh.first == pytest.approx((1.960 + 0.842) * 0.27 / 16, rel=1e-3)
    assert forked.first == pytest.approx((3.261 + 0.842) * 0.27 / 16, rel=1e-3)
    assert "measured here" in fresh.lines()[0]


def test_locked_parts_are_marked_or_speak_of_refusing() -> None:
    text = "Say it.\n<!-- locked -->\nNever draw maps.\n<!-- /locked -->\nBe brief."
    assert locked_parts(text, "decision") == ("Say it.\nNever draw maps.\nBe brief.", ("Never draw maps.",))
    assert locked_parts(f"{TASK} {REFUSING}", "complete") == (f"{TASK} {REFUSING}", (REFUSING,))
    assert locked_parts("Refuse nothing here.", "decision")[1] == ()  # the program adds the policy itself


# ---------------------------------------------------------------------------------------------------- analysis


def test_failures_are_themes_with_what_the_rewrite_lost() -> None:
    made = fakes.requests(2)
    request = replace(made[0], prompt='two red cats and "HI"')

    def sample(answers: tuple[float, ...], prompt: str, status: Any = "drawn") -> Sample:
        return Sample(
            candidate="c", request="r", index=0, seed=1, prompt=prompt, status=status, score=0.5, answers=answers
        )

    good, bad = (1.0,) * 11, (1.0, 0.0) + (1.0,) * 9
    found = analyse(
        [request, made[1]], [[sample(bad, "cats")], [sample(good, "x"), sample((), "", "refused")]]
    )  # fmt: skip
    assert found.counts() == {"counting": 1, "refusal": 1}
    (failure,) = found.themes["counting"]
    assert failure.lost == 'the words "HI"' and failure.lacks == "Does rubric 1 hold?"
    assert "1 of them already lost in the rewrite" in found.text()
    assert lost_content("two red cats", "2 cats in red") == ""
    assert lost_content("two red cats", "cats in red") == "the number two"
    assert lost_content("a green bus at 7", "a bus at 7") == "the colour green"
    assert lost_content("a bus at 7", "a bus") == "the number 7"


# ---------------------------------------------------------------------------------------------------- guidelines


def task(current: str, themes: dict[str, int], texts: tuple[str, ...] = ()) -> Task:
    failures = {
        name: tuple(Failure(theme=name, request="r", rewrite="w", lacks="l", lost="") for _ in range(count))
        for name, count in themes.items()
    }
    analysis = Analysis(pictures=9, mean=0.5, themes=failures, strong={})
    return Task(
        iteration=0, attempt=0, current=current, analysis=analysis, history=(), locked=(REFUSING,), word_limit=300,
        texts=(current, *texts),
    )  # fmt: skip


def test_guidelines_compose_against_what_fails_and_never_repeat() -> None:
    library = load_guidelines()
    by_id = {guideline.id: guideline.text for guideline in library}
    writer = GuidelineWriter(library)
    poor = f"{TASK} {by_id['size']} {REFUSING}"
    texts: list[str] = []
    for _ in range(20):
        texts.append(writer.write(task(poor, {"counting": 5, "colours": 2}, tuple(texts))).text)
    assert len({frozenset(text.split(". ")) for text in texts}) == 20
    assert all(text.startswith(TASK) and text.endswith(REFUSING) for text in texts)
    first = texts[0]
    assert (
        all(by_id[name] in first for name in ("size", "count", "sum", "colour", "tone"))
        and by_id["praise"] not in first
    )
    assert any(by_id["size"] not in text for text in texts[:5])  # what stands there for nothing is taken away
    own = writer.write(task(f"{TASK} Be a poet. {REFUSING}", {"counting": 5}))
    assert "Be a poet." not in own.text and by_id["count"] in own.text
    small = GuidelineWriter(library[:1])
    with pytest.raises(WriterSpent):
        tried: list[str] = []
        while True:
            tried.append(small.write(task(poor, {}, tuple(tried))).text)


# ---------------------------------------------------------------------------------------------------- endpoints


def client(endpoint: Endpoint, budget: Any = None) -> Client:
    address = make_address(
        endpoint.url, "m", key=None, timeout=10, max_tokens=100, labels={}
    )  # fmt: skip
    return Client(address, wait=lambda seconds: None, budget=budget)


def test_a_model_writes_in_any_form_that_its_server_keeps_to(tmp_path: Path) -> None:
    said = {"analysis": "a", "changes": "shorter\nnow", "prompt": "New  \n\nprompt."}
    fenced = completion("Here it is:\n```\nNew\nprompt.\n```\nGood luck!")
    with Endpoint(
        completion(json.dumps(said)), failure(400, "response_format?"), completion("nothing"), fenced
    ) as server:
        writer = ModelWriter(WriterEndpoint(model="m"), client(server))
        job = task("Old.", {"counting": 1})
        first = writer.write(job)
        assert (first.text, first.changes) == ("New\n\nprompt.", "shorter now")
        assert server.asked[0]["response_format"]["json_schema"]["name"] == "system_prompt"
        assert "# What fails under it" in server.asked[0]["messages"][1]["content"]
        assert writer.write(job).text == "New\nprompt."  # schema refused, JSON not kept to, plain text read
    with Endpoint(completion("cut", finish="length")) as server, pytest.raises(ReplyError, match="was cut"):
        ModelWriter(WriterEndpoint(model="m"), client(server)).write(job)


def test_dollars_are_counted_over_all_runs_and_end_the_questions(tmp_path: Path) -> None:
    limits = Limits(dollars=1.0)
    spending = Spending(tmp_path / "spent.jsonl", limits)
    budget = RoleBudget(spending, "writer", 1.0, 10.0)
    budget.take()
    budget.add(ChatReply(content="x", tokens_in=400_000, tokens_out=50_000))  # $0.90
    again = Spending(tmp_path / "spent.jsonl", limits)
    assert again.dollars == pytest.approx(0.9) and again.exhausted() is None
    RoleBudget(again, "judge", 1.0, 0.0).add(ChatReply(content="x", tokens_in=100_000))
    with pytest.raises(BudgetError, match=r"\$1.00 is spent"):
        RoleBudget(again, "writer", 1.0, 10.0).take()
    assert again.exhausted() == "the budget of $1.00"
    with pytest.raises(ReplyError, match="how many tokens"):
        RoleBudget(again, "judge", 1.0, 0.0).add(ChatReply(content="x"))
    free = RoleBudget(Spending(tmp_path / "other.jsonl", Limits()), "judge", 0.0, 0.0)
    free.add(ChatReply(content="x"))


def test_minutes_keep_back_what_the_confirmation_takes(tmp_path: Path) -> None:
    spending = Spending(tmp_path / "spent.jsonl", Limits(minutes=10))
    spending.add("generator", pictures=100, seconds=400.0)
    assert spending.exhausted() is None and spending.exhausted(reserve=60) is not None  # 4 s each, 200 s left
    spending.add("generator", pictures=1, seconds=300.0)
    assert spending.exhausted() is not None and spending.exhausted(None) is None


def picture(side: int = 8, form: str = "PNG") -> str:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(stream, form)
    return base64.b64encode(stream.getvalue()).decode()


def test_pictures_come_from_an_images_endpoint() -> None:
    good = Answer(body={"created": 1, "data": [{"b64_json": picture()}]})
    elsewhere = Answer(body={"created": 1, "data": [{"url": "http://169.254.169.254/"}]})
    with Endpoint(
        failure(400, "unknown field: seed"), good, elsewhere, failure(401, "no"), failure(503, "busy")
    ) as server:
        drawer = EndpointGenerator(ImagesEndpoint(base_url=server.url, model="m", size="512x768"))
        assert drawer.draw("a cat", 7).size == (8, 8)
        assert server.asked[0]["seed"] == 7 and "seed" not in server.asked[1]  # what a server refuses goes
        assert server.asked[1]["size"] == "512x768" and server.asked[1]["response_format"] == "b64_json"
        with pytest.raises(ReplyError, match="answered with no picture"):  # its address is never followed
            drawer.draw("a cat", 8)
        with pytest.raises(UsageError, match="refused the picture"):
            drawer.draw("a cat", 9)
        with pytest.raises(NetworkError):
            drawer.draw("a cat", 10)
    with pytest.raises(NetworkError, match="cannot reach"):
        drawer.draw("a cat", 11)
    for wrong in (b"{}", b"[]", b'{"data":[{"b64_json":"!"}]}', b'{"data":[{"b64_json":"AAAA"}]}', b"\xff"):
        with pytest.raises(ReplyError):
            picture_of(wrong, "there")
    with pytest.raises(UsageError, match="no model was named"):
        EndpointGenerator(ImagesEndpoint())


# ---------------------------------------------------------------------------------------------------- report


def test_the_report_begins_with_the_verdict_and_escapes_what_others_wrote(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=2)))
    hostile = fakes.plain("<script>alert(1)</script> $x^2$", 0.4)
    with SearchFolder(path) as folder:
        outcome = run(folder, fakes.parts(), fakes.FakeWriter([hostile, "no"]))
        page = write_report(folder)
        numbers = findings(folder).data()
    text = page.read_text()
    body = text[text.index("<body>") :]
    assert body.index("c0001 is better than the first prompt") < 40  # the first line
    assert "<script" not in text and text.count("<svg") >= 4 and text.count("data:image/jpeg") >= 8
    assert "default-src 'none'" in text and "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"|resource="[^"]*"', "", text)
    assert "Exploratory: 20 validation requests" in text and "Largest wins" in text
    assert json.loads(page.with_suffix(".json").read_text()) == json.loads(json.dumps(numbers))
    assert numbers["verdict"] == outcome.verdict() and numbers["wins"] > numbers["losses"]
    assert numbers["themes"]["counting"][1] > numbers["themes"]["counting"][0]
    assert [c["outcome"] for c in numbers["candidates"]][:2] == ["promoted", "not usable: it has 1 words"]


def test_a_search_under_way_has_a_report_too(tmp_path: Path) -> None:
    path = fakes.make(tmp_path / "run")
    with SearchFolder(path, read_only=True) as folder:
        assert findings(folder).verdict == "The search is not over."
        assert "The search is not over." in write_report(folder, tmp_path / "x" / "page.html").read_text()


def test_attempts_are_told_with_their_gain() -> None:
    told = replace(
        task("Old.", {}), history=(Attempt(name="c0001", text="t", changes="shorter", outcome="loser", gain=-0.03),)
    )  # fmt: skip
    assert "- c0001: loser, -0.030. shorter" in told.instructions()


def test_gepa_proposes_and_the_gate_decides(tmp_path: Path) -> None:
    """It sees the train split alone, needs only the search's own writer, and asks nothing twice."""
    from train.search.writers.gepa import GepaWriter

    path = fakes.make(tmp_path / "run", fakes.config(limits=Limits(candidates=1), probes=0))
    drawn: list[int] = []
    inner = fakes.FakeWriter()
    for _ in range(2):
        (path / "analyses" / "i0000.0.reply.json").unlink(missing_ok=True)
        for name in ("events.jsonl", "validated.json"):
            (path / name).write_text('{"validated": 0}' if name == "validated.json" else "")
        inner, generator = fakes.FakeWriter(), fakes.FakeGenerator()
        inner.write = lambda task, inner=inner: (  # pyright: ignore[reportAttributeAccessIssue]
            inner.tasks.append(task) or fakes.Proposal(text=fakes.plain(task.attempt, 0.4), changes="x")
        )
        with SearchFolder(path) as folder:
            outcome = run(folder, fakes.parts(generator=generator), GepaWriter(inner, path / "gepa.jsonl", 0))
            seen = {row["request"] for row in folder.samples.rows if row["candidate"] == "trial"}
            assert seen <= {request.id for request in folder.split("train")}
        assert (
            outcome.best == "c0001"
            and "gepa, " in json.loads((path / "candidates/c0001/meta.json").read_text())["changes"]
        )
        drawn.append(len(generator.drawn))
    assert drawn[0] > 100 and drawn[1] == 0 and not inner.tasks
