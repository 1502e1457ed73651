"""Everything a judge may answer, and what is made of it: a table, asked over a real socket of a scripted server.

To be trusted because each row is what a server sends, and because a good answer goes the same way (first row).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from backend.chat.address import Label, make_address
from backend.chat.client import Client
from backend.errors import UsageError
from tests.backend.scripted_endpoint import Answer, Endpoint, completion, failure
from train.judge.config import EndpointJudge, ScoreServer, ServedReward
from train.judge.endpoint import ModelJudge, make
from train.judge.judge import Question
from train.judge.score_server import ScoreJudge
from train.losses.rewards import Missing, RewardRule, Verdict, reward, tally

PICTURE = Image.new("RGB", (32, 32), "red")
QUESTION = Question(prompt="a red ball", rubrics=("Is there a ball?", "Is it red?"), kinds=("item", "color"),
                    overall="Is it coherent?")  # fmt: skip
LABELS = {name: Label(name, name) for name in ("base_url", "model", "key", "timeout", "limit", "max_tokens")}


def judge_at(url: str, **fields: Any) -> ModelJudge:
    config = EndpointJudge(base_url=url, model="m", at_once=2, **fields)
    address = make_address(url, "m", key=None, timeout=5, max_tokens=99, labels=LABELS)
    return ModelJudge(config, Client(address, wait=lambda _: None))


def said(*answers: str, numbers: tuple[int, ...] | None = None) -> str:
    each = zip(numbers or range(1, len(answers) + 1), answers, strict=True)
    return json.dumps({"verdicts": [{"number": n, "evidence": "x", "answer": a} for n, a in each]})


def by_question(body: dict[str, Any], no: str = "no") -> Answer:
    """Right in whatever order it is asked: only "Is it red?" is a no."""
    asked = body["messages"][1]["content"][0]["text"].split("\n")
    return completion(said(*(no if "red" in line else "yes" for line in asked)))


GOOD = Verdict((1.0, 0.0), 1.0)
TABLE: list[tuple[str, Any, Verdict]] = [
    ("as asked", by_question, GOOD),
    ("in a fence", lambda body: completion(f"Sure:\n```json\n{by_question_text(body)}\n```"), GOOD),
    ("prose", completion("The ball looks red to me."), Verdict(missing=Missing.UNREADABLE)),
    ("empty", completion(""), Verdict(missing=Missing.UNREADABLE)),
    ("cut off", completion(said("yes", "no", "yes")[:-9], finish="length"), Verdict(missing=Missing.UNREADABLE)),
    ("too few", completion(said("yes", "no")), Verdict(missing=Missing.COUNT)),
    ("too many", completion(said("yes", "no", "yes", "yes")), Verdict(missing=Missing.COUNT)),
    ("one twice", completion(said("yes", "no", "yes", numbers=(1, 2, 2))), Verdict(missing=Missing.UNREADABLE)),
    ("unknown number", completion(said("yes", "no", "yes", numbers=(1, 2, 9))), Verdict(missing=Missing.UNREADABLE)),
    ("maybe", lambda body: by_question(body, no="maybe"), Verdict((1.0, None), 1.0)),
    ("only maybe", completion(said("maybe", "perhaps", "2")), Verdict(missing=Missing.UNREADABLE)),
    ("429 to the end", failure(429, "slow down"), Verdict(missing=Missing.BUSY)),
    ("500", failure(500, "oh"), Verdict(missing=Missing.UNREACHABLE)),
    ("refusal in its field", completion(None, refusal="no"), Verdict(missing=Missing.REFUSED)),
    ("refusal in prose", completion("I'm sorry, but I can't help with that."), Verdict(missing=Missing.REFUSED)),
    ("a filter's 400", failure(400, "content_policy_violation"), Verdict(missing=Missing.REFUSED)),
]  # fmt: skip


def by_question_text(body: dict[str, Any]) -> str:
    return by_question(body).body["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("answer", "outcome"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_answer_has_a_stated_outcome(answer: Any, outcome: Verdict) -> None:
    with Endpoint(answer) as endpoint:
        verdict = judge_at(endpoint.url).judge(PICTURE, QUESTION)
    assert verdict == outcome
    if verdict.missing:
        assert reward(verdict, RewardRule()) is None  # missing, never zero


def test_a_refusal_is_not_the_judge_failing_and_a_timeout_is() -> None:
    config = EndpointJudge(model="m", base_url="http://127.0.0.1:1/v1", timeout=1)
    unreachable = make(config, lambda _: None).judge(PICTURE, QUESTION)
    with Endpoint(Answer(body="{}", delay=1.5)) as endpoint:
        address = make_address(endpoint.url, "m", key=None, timeout=0.2, max_tokens=9, labels=LABELS)
        late = ModelJudge(EndpointJudge(model="m"), Client(address, wait=lambda _: None)).judge(PICTURE, QUESTION)
    assert (unreachable.missing, late.missing) == (Missing.UNREACHABLE, Missing.TIMEOUT)
    found = tally([unreachable, late, Verdict(missing=Missing.REFUSED), GOOD])
    assert found.failing == 0.5


def test_a_wrong_key_and_no_model_end_the_run() -> None:
    with Endpoint(failure(401, "who are you")) as endpoint, pytest.raises(UsageError, match="asks for a key"):
        judge_at(endpoint.url).judge(PICTURE, QUESTION)
    with pytest.raises(UsageError, match="no model was named"):
        make(EndpointJudge(), lambda _: None)


def test_an_unreadable_answer_is_asked_again_with_another_seed() -> None:
    # Three forms of the question are tried for the first one, and what is good comes with the next seed.
    prose = completion("hm")
    with Endpoint(prose, prose, prose, by_question) as endpoint:
        assert judge_at(endpoint.url, attempts=2, seed=5).judge(PICTURE, QUESTION) == GOOD
    assert [body["seed"] for body in endpoint.asked] == [5, 5, 5, 6]
    assert {body["temperature"] for body in endpoint.asked} == {0.0}


def test_the_order_is_shuffled_by_the_seed_and_evidence_stands_before_the_answer() -> None:
    orders = set[str]()
    with Endpoint(by_question) as endpoint:
        for seed in range(8):
            assert judge_at(endpoint.url, seed=seed).judge(PICTURE, QUESTION) == GOOD
    for body in endpoint.asked:
        orders.add(body["messages"][1]["content"][0]["text"])
        entry = body["response_format"]["json_schema"]["schema"]["properties"]["verdicts"]["items"]
        assert list(entry["properties"]) == ["number", "evidence", "answer"]
    assert len(orders) > 2


def test_apart_reads_the_probability_of_yes_and_without_it_the_word() -> None:
    top = [{"token": "Yes", "logprob": -0.5}, {"token": " no", "logprob": -1.5}, {"token": "Maybe", "logprob": -3}]
    told = completion("Yes").body
    told["choices"][0]["logprobs"] = {"content": [{"token": "Yes", "logprob": -0.5, "top_logprobs": top}]}
    with Endpoint(Answer(body=told), completion("No."), completion("maybe")) as endpoint:
        verdict = judge_at(endpoint.url, calls="apart").judge(PICTURE, QUESTION)
    first, second = verdict.answers
    assert first == pytest.approx(1 / (1 + 2.718281828 ** (-1.0)), abs=1e-6)  # e^-.5 / (e^-.5 + e^-1.5)
    assert (second, verdict.overall) == (0.0, None)


# ---------------------------------------------------------------------------------------------------- the score server

SCORERS = (ServedReward(name="clip", low=0.0, high=0.5, timeout=5), ServedReward(name="ocr", timeout=5))


def scores(clip: Any = 0.25, ocr: Any = 0.75, errors: dict[str, str] | None = None) -> Any:
    def script(body: dict[str, Any]) -> Answer:
        (request,) = body["requests"]
        (name,) = request["required_rewards"]
        assert request["history"][0]["text"] == "a red ball" and request["history"][0]["image_b64"]
        if errors and name in errors:
            return Answer(body={"results": [{}], "errors": [{name: errors[name]}]})
        return Answer(body={"results": [{name: {name: clip if name == "clip" else ocr}}], "errors": [{}]})

    return script


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (scores(), Verdict((0.5, 0.75))),
        (scores(clip=9.0, ocr=-1), Verdict((1.0, 0.0))),  # cut to the scale
        (scores(clip=None), Verdict((None, 0.75))),
        (scores(clip=float("nan")), Verdict((None, 0.75))),
        (scores(ocr="0.3", clip=0.0), Verdict((0.0, None))),
        (scores(ocr=True), Verdict((0.5, None))),
        (Answer(body="<html>"), Verdict(missing=Missing.UNREADABLE)),
        (Answer(body={"results": [{}, {}], "errors": [{}, {}]}), Verdict(missing=Missing.COUNT)),
        (failure(429, "busy"), Verdict(missing=Missing.BUSY)),
        (failure(500, "oh"), Verdict(missing=Missing.UNREACHABLE)),
    ],
)
def test_a_score_servers_answers(answer: Any, outcome: Verdict) -> None:
    with Endpoint(answer) as endpoint:
        config = ScoreServer(url=endpoint.url.removesuffix("/v1"), scorers=SCORERS)
        judge = ScoreJudge(config, wait=lambda _: None)
        assert judge.submit(PICTURE, QUESTION).result() == outcome
        judge.close()


def test_errors_of_a_score_server_and_a_slow_reward() -> None:
    with Endpoint(scores(errors={"clip": "RuntimeError('cuda')"})) as endpoint:
        judge = ScoreJudge(ScoreServer(url=endpoint.url[:-3], scorers=SCORERS))
        assert judge.judge(PICTURE, QUESTION) == Verdict((None, 0.75))
    with Endpoint(scores(errors={"clip": "TimeoutError()", "ocr": "TimeoutError()"})) as endpoint:
        judge = ScoreJudge(ScoreServer(url=endpoint.url[:-3], scorers=SCORERS))
        assert judge.judge(PICTURE, QUESTION) == Verdict(missing=Missing.TIMEOUT)

    def slow(body: dict[str, Any]) -> Answer:
        name = body["requests"][0]["required_rewards"][0]
        return Answer(body={"results": [{name: {name: 0.5}}], "errors": [{}]}, delay=0.5 if name == "ocr" else 0)

    with Endpoint(slow) as endpoint:  # the limit is each reward's own
        scorers = (ServedReward(name="clip", low=0.0, high=0.5, timeout=5), ServedReward(name="ocr", timeout=0.1))
        judge = ScoreJudge(ScoreServer(url=endpoint.url[:-3], scorers=scorers))
        assert judge.judge(PICTURE, QUESTION) == Verdict((1.0, None))
    with Endpoint(failure(404, "no reward ocr")) as endpoint, pytest.raises(UsageError, match="refused"):
        ScoreJudge(ScoreServer(url=endpoint.url[:-3], scorers=SCORERS)).judge(PICTURE, QUESTION)
