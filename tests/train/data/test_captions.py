"""Captioning: what counts as a caption, what is asked, and that no answer is lost or paid for twice.

Why it can be trusted: the questions go over the real client to a loopback server that notes what it was asked; batch
files are checked against the form that OpenAI documents, and answered by the test in another order than asked.
"""

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

import prompts
from backend.chat.client import Client
from backend.errors import LensError, NetworkError, UsageError
from backend.reasoner.address import reasoner_address
from backend.settings import ReasonerSettings
from tests.backend.scripted_endpoint import Answer as Http
from tests.backend.scripted_endpoint import Endpoint, completion, failure
from tests.train.packed import picture
from tests.train.works import scanned
from train.data.captions.ask import Caption, CaptionSettings
from train.data.captions.batch import read_answers, write_requests
from train.data.captions.checks import Band, count_words, flaw, language_of, repeats, tidy
from train.data.captions.journals import Journal, follow
from train.data.scan import planned
from train.data.work import Work

FOX = (
    "A red fox with a white chest stands in fresh snow beside a weathered wooden signpost, its head turned to the left "
    'and one forepaw raised. The sign carries the hand-painted black words "狐狸小径 3 km" above a small arrow that '
    "points right. Behind it bare birches rise against a pale blue morning sky, and low sun from the right throws long "
    "shadows across the ground."
)
DENSE = Band(40, 250)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# --------------------------------------------------------------------------------------------------------------- checks


def test_a_good_caption_has_no_flaw() -> None:
    assert flaw(FOX, DENSE, "en") is None
    assert language_of(FOX) == "en"  # the sign's words are quoted, and keep their language
    assert flaw("a photo of a cat on a sofa", Band(2, 25), "en") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no caption"),
        ("I'm sorry, I can't help with identifying people in this image. " * 4, "a refusal"),
        ("A red fox.", "3 words, not 40 to 250"),
        (FOX * 8, "words, not 40 to 250"),
        ("The fox stands in the deep white snow. " * 10, "repeats itself"),
        (
            "Ein roter Fuchs mit weißer Brust steht im frischen Schnee neben einem alten Wegweiser aus Holz, den "
            "Kopf nach links gewandt und eine Pfote erhoben. Dahinter ragen kahle Birken in einen blassblauen Himmel, "
            "und die tiefe Sonne wirft lange Schatten über den Boden, der sonst unberührt ist.",
            "in de, not in en",
        ),
        (FOX + "\0", "no text"),
        ("x" * 30_000, "characters"),
    ],
)
def test_flaws(text: str, said: str) -> None:
    reason = flaw(text, DENSE, "en")
    assert reason is not None and said in reason


def test_quoted_words_may_be_of_any_language_and_repeat() -> None:
    wall = "A wall with three posters side by side, each reading "
    posters = wall + ", ".join(['"Grand Opening of the Old Mill Museum"'] * 3) + " in red letters. " + FOX
    assert repeats(posters.replace('"', "")) and not repeats(posters)
    german = FOX + ' A second board says "Bitte die Wege nicht verlassen, die Tiere brauchen im Winter ihre Ruhe".'
    assert flaw(german, DENSE, "en") is None


def test_what_models_put_around_a_caption_goes() -> None:
    for text in (
        f"Here is a dense caption of the picture: {FOX}", f"Caption: {FOX}", f"```\n{FOX}\n```", f"**{FOX}**",
        "The image shows a" + FOX[1:], f"Sure! Here's the description: {FOX}", FOX.replace(". ", ".\n\n"),
        f"## Description\n{FOX}",
    ):  # fmt: skip
        assert tidy(text) == FOX
    assert tidy('"a cat on a sofa"') == "a cat on a sofa"
    assert tidy('"OPEN" and "CLOSED"') == '"OPEN" and "CLOSED"'
    assert tidy("This watercolour shows a fox") == "This watercolour shows a fox"


def test_words_of_scripts_without_blanks() -> None:
    assert count_words("a red fox") == 3 and count_words("猫と犬が走る") == 3 and count_words("see 猫 run") == 3


# ------------------------------------------------------------------------------------------------------------- endpoint


def speaker(endpoint: Endpoint) -> Client:
    settings = ReasonerSettings(base_url=endpoint.url, model="eye", timeout=5.0, max_tokens=700)
    return Client(reasoner_address(settings), wait=lambda seconds: None)


def folder_of(tmp_path: Path, count: int = 3) -> Work:
    return scanned(tmp_path, {"photos": {f"{n}.png": picture(100 * n, 80, 60) for n in range(count)}})


def stage(work: Work, asker: Any, **changes: Any) -> Caption:
    return Caption(work, replace(CaptionSettings(at_once=2), **changes), "eye", asker)


def rows(work: Work) -> list[dict[str, Any]]:
    return work.read("caption", 0).to_pylist()


def shown(body: dict[str, Any]) -> Image.Image:
    url = body["messages"][1]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_every_picture_is_asked_about_once_and_shown(tmp_path: Path) -> None:
    work = folder_of(tmp_path)
    with Endpoint(completion(FOX)) as endpoint:
        stage(work, speaker(endpoint), side=64)(0)
        assert stage(work, speaker(endpoint), side=64).missing(0) is False
        stage(work, speaker(endpoint), side=64)(0)
    assert len(endpoint.asked) == 3
    assert all(body["messages"][0]["content"] == prompts.captioning("dense").body for body in endpoint.asked)
    assert {shown(body).size for body in endpoint.asked} == {(64, 48)}
    reds = sorted(shown(body).getpixel((5, 5))[0] for body in endpoint.asked)  # type: ignore[index]
    assert [round(red / 100) for red in reds] == [0, 1, 2]  # JPEG shifts them a little
    for row in rows(work):
        assert (row["caption"], row["language"], row["model"], row["error"]) == (FOX, "en", "eye", None)
        assert row["words"] == len(FOX.split()) + 1  # four Chinese letters count as two words


def test_a_flawed_answer_is_asked_again_with_another_seed(tmp_path: Path) -> None:
    work = folder_of(tmp_path, 1)
    answers = [completion("A fox."), completion(None, refusal="no"), completion(FOX[:90], finish="length")]
    with Endpoint(*answers, completion(FOX)) as endpoint:
        stage(work, speaker(endpoint))(0)
        (row,) = rows(work)
        assert row["caption"] is None and row["error"] == "dense: cut at the limit of tokens"
        assert [body["seed"] for body in endpoint.asked] == [0, 1, 2]
        stage(work, speaker(endpoint))(0)
        assert len(endpoint.asked) == 3  # no attempt is left
        stage(work, speaker(endpoint), attempts=4)(0)
    assert rows(work)[0]["caption"] == FOX and len(endpoint.asked) == 4


def test_another_band_costs_nothing_another_prompt_asks_anew(tmp_path: Path) -> None:
    work = folder_of(tmp_path)
    with Endpoint(completion(FOX)) as endpoint:
        stage(work, speaker(endpoint))(0)
        stage(work, speaker(endpoint), least_words=300, most_words=400, attempts=1)(0)
        assert [row["error"] for row in rows(work)] == [f"dense: {len(FOX.split()) + 1} words, not 300 to 400"] * 3
        stage(work, speaker(endpoint))(0)
        assert len(endpoint.asked) == 3 and rows(work)[0]["caption"] == FOX
        mine = tmp_path / "mine.md"
        mine.write_text("Describe it.")
        stage(work, speaker(endpoint), prompt=str(mine))(0)
    assert len(endpoint.asked) == 6 and endpoint.asked[-1]["messages"][0]["content"] == "Describe it."


def test_a_dead_endpoint_ends_the_stage_and_loses_nothing(tmp_path: Path) -> None:
    """Two answers, then only failures: the error comes out; the next run asks about the rest alone."""
    work = folder_of(tmp_path, 20)
    with Endpoint(completion(FOX), completion(FOX), failure(500, "out of order")) as endpoint:
        with pytest.raises(NetworkError, match="out of order"):
            stage(work, speaker(endpoint), at_once=1)(0)
        assert len(endpoint.asked) == 10 and work.mark("caption", 0) is None
    with Endpoint(completion(FOX)) as endpoint:
        stage(work, speaker(endpoint))(0)
    assert len(endpoint.asked) == 18 and all(row["caption"] == FOX for row in rows(work))


def test_single_failures_are_told_and_tried_again(tmp_path: Path) -> None:
    work = folder_of(tmp_path, 3)
    with Endpoint(completion(FOX), failure(400, "this picture breaks our rules"), completion(FOX)) as endpoint:
        stage(work, speaker(endpoint), at_once=1)(0)
    errors = [row["error"] for row in rows(work)]
    assert errors[0] is None and "breaks our rules" in errors[1] and errors[2] is None
    with Endpoint(completion(FOX)) as endpoint:
        again = stage(work, speaker(endpoint))
        assert again.missing(0)
        again(0)
        assert len(endpoint.asked) == 1 and not again.missing(0)


def test_a_parameter_that_two_threads_hear_refused(tmp_path: Path) -> None:
    """Both asked with a seed and both are refused; the second refusal is no failure."""

    def picky(body: dict[str, Any]) -> Http:
        said = replace(failure(400, "unknown parameter: seed"), delay=0.2)
        return said if "seed" in body else completion(FOX)

    work = folder_of(tmp_path, 2)
    with Endpoint(picky) as endpoint:
        stage(work, speaker(endpoint))(0)
    assert Counter("seed" in body for body in endpoint.asked) == {True: 2, False: 2}
    assert all(row["caption"] == FOX for row in rows(work))


def test_brief_captions_and_captions_of_ones_own(tmp_path: Path) -> None:
    photos = {"a.png": picture(1, 60, 60)}
    posters = {"b.png": picture(2, 60, 60), "b.txt": b"Ein Plakat", "c.png": picture(3, 60, 60)}
    work = scanned(tmp_path, {"photos": photos, "posters": posters})

    def both(body: dict[str, Any]) -> Http:
        dense = body["messages"][0]["content"] == prompts.captioning("dense").body
        return completion(FOX if dense else "a photo of a fox")

    with Endpoint(both) as endpoint:
        for shard in work.shards("scan"):
            stage(work, speaker(endpoint), brief=True, own=("posters",))(shard)
    made = {row["key"]: row for shard in work.shards("caption") for row in work.read("caption", shard).to_pylist()}
    assert len(endpoint.asked) == 2
    assert (made["photos/a.png"]["caption"], made["photos/a.png"]["brief"]) == (FOX, "a photo of a fox")
    assert (made["posters/b.png"]["caption"], made["posters/b.png"]["model"]) == ("Ein Plakat", "source")
    assert made["posters/c.png"]["error"] == "no caption"


def test_a_torn_journal(tmp_path: Path) -> None:
    work = folder_of(tmp_path)
    with Endpoint(completion(FOX)) as endpoint:
        stage(work, speaker(endpoint))(0)
        path = work.path("caption", 0).with_suffix(".jsonl")
        whole = path.read_bytes()
        path.write_bytes(whole[:-40])
        work.path("caption", 0).with_suffix(".done").unlink()
        stage(work, speaker(endpoint))(0)
    assert len(endpoint.asked) == 4 and all(row["caption"] == FOX for row in rows(work))
    assert sum(len(Journal(path)._answers[k]) for k in Journal(path)._answers) == 3


def test_answers_follow_their_pictures(tmp_path: Path) -> None:
    """What is added to a folder shifts pictures into other shards: nobody is asked again, nor about what was renamed,
    but about a file that was replaced under its old name."""
    photos = {f"{n}.png": picture(60 * n, 80, 60) for n in range(4)}
    work = scanned(tmp_path, {"photos": photos}, shard_size=2)
    with Endpoint(completion(FOX)) as endpoint:
        for shard in (0, 1):
            stage(work, speaker(endpoint))(shard)
        files, _, _ = write_requests(stage(work, None, prompt="brief"), [0, 1], tmp_path / "out")
        (tmp_path / "photos" / "3.png").rename(tmp_path / "photos" / "z.png")
        work = scanned(tmp_path, {"photos": {"1.png": picture(255, 70, 60), "a.png": picture(7, 90, 60)}}, shard_size=1)
        shards = planned(work)
        assert len(shards) == 5 and follow(work, shards) == 2  # 2, and z, which was 3; 0 stays where it was
        assert follow(work, shards) == 0
        for shard in shards:
            stage(work, speaker(endpoint))(shard)
        assert len(endpoint.asked) == 4 + 2
    answers = write(tmp_path / "answers.jsonl", answered(files[0]))
    told = read_answers(stage(work, None, prompt="brief"), [answers])
    assert (told.taken, told.foreign) == (3, 1)  # the old 1.png is gone


# ---------------------------------------------------------------------------------------------------------- batch files


def answered(path: Path, text: str = FOX, size: tuple[int, int] | None = (80, 60)) -> list[dict[str, Any]]:
    """What a batch service makes of a request file: OpenAI's form, in the reverse order."""
    told: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        request = json.loads(line)
        assert request["method"] == "POST" and request["url"] == "/v1/chat/completions"
        assert request["body"]["model"] == "eye"
        assert size in (None, shown(request["body"]).size)
        message = {"role": "assistant", "content": text, "refusal": None}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 900, "completion_tokens": 140}}  # fmt: skip
        response = {"status_code": 200, "request_id": "r", "body": body}
        told.append({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})
    return told[::-1]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_batch_files_out_and_in(tmp_path: Path) -> None:
    work = folder_of(tmp_path, 5)
    silent = stage(work, None)
    files, count, skipped = write_requests(silent, [0], tmp_path / "out", max_requests=2)
    assert [file.name for file in files] == [f"requests-0000{n}.jsonl" for n in range(3)]
    assert (count, skipped) == (5, 0)
    names = [json.loads(line)["custom_id"] for file in files for line in file.read_text().splitlines()]
    assert len(set(names)) == 5 and all(len(name) <= 64 and re.fullmatch(r"[\w-]+", name) for name in names)

    lines = [line for file in files for line in answered(file)]
    lines[0]["response"] = {"status_code": 429, "body": {"error": {"message": "slow down"}}}
    lines[1]["error"], lines[1]["response"] = {"code": "batch_expired"}, None
    lines[2]["response"]["body"]["choices"][0]["message"]["content"] = "A fox."  # flawed
    foreign = {**lines[3], "custom_id": "somebody-elses"}
    path = write(tmp_path / "answers.jsonl", [*lines, foreign, {"no": "answer"}])
    arrived = read_answers(silent, [path])
    assert vars(arrived) == {"taken": 3, "known": 0, "failed": 2, "foreign": 1, "broken": 1}
    assert vars(read_answers(silent, [path])) == {"taken": 0, "known": 3, "failed": 2, "foreign": 1, "broken": 1}
    silent(0)
    assert sum(row["caption"] == FOX for row in rows(work)) == 2
    assert Counter(row["error"] for row in rows(work)) == {
        None: 2, "dense: not asked yet": 2, "dense: 2 words, not 40 to 250": 1,
    }  # fmt: skip

    # The rest, once more by file and then by asking: together five captions.
    files, count, _ = write_requests(silent, [0], tmp_path / "second")
    assert count == 3
    read_answers(silent, [write(tmp_path / "more.jsonl", answered(files[0])[:2])])
    with Endpoint(completion(FOX)) as endpoint:
        stage(work, speaker(endpoint))(0)
    assert len(endpoint.asked) == 1 and all(row["caption"] == FOX for row in rows(work))


def test_answers_to_another_prompt_are_foreign(tmp_path: Path) -> None:
    work = folder_of(tmp_path, 2)
    files, _, _ = write_requests(stage(work, None), [0], tmp_path / "out")
    mine = tmp_path / "mine.md"
    mine.write_text("Describe it.")
    path = write(tmp_path / "answers.jsonl", answered(files[0]))
    assert read_answers(stage(work, None, prompt=str(mine)), [path]).foreign == 2
    with pytest.raises(UsageError, match="there already"):
        write_requests(stage(work, None), [0], tmp_path / "out")
    with pytest.raises(LensError, match="cannot read"):
        read_answers(stage(work, None), [tmp_path / "none.jsonl"])


def test_files_are_cut_by_bytes(tmp_path: Path) -> None:
    work = folder_of(tmp_path, 4)
    files, count, _ = write_requests(stage(work, None), [0], tmp_path / "out", max_bytes=10_000)
    assert count == 4 and len(files) > 1 and all(file.stat().st_size <= 10_000 for file in files)


@pytest.mark.parametrize("wrong", [{"side": 1}, {"attempts": 0}, {"most_words": 10}, {"at_once": 0}])
def test_settings_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CaptionSettings(**wrong)


def test_captioning_prompts() -> None:
    dense, brief = prompts.captioning("dense"), prompts.captioning("brief")
    assert (dense.name, brief.name, dense.contract) == ("dense", "brief", "complete")
    assert "own language" in dense.body and "own language" in brief.body.replace("\n", " ")
    with pytest.raises(prompts.PromptError) as caught:
        prompts.captioning("densest")
    assert "brief, dense" in caught.value.hint


def test_a_journal_s_line_of_another_kind_is_asked_for_again(tmp_path: Path) -> None:
    """`make fuzz` found the deep one; the text in a number's place ended the stage when its tokens were summed."""
    good = {"picture": "p", "kind": "dense", "identity": "i", "text": "a cat", "tokens_in": 3, "tokens_out": 4}
    rows = [json.dumps(good), '{"a":' * 3000, json.dumps(good | {"tokens_in": "9"}), json.dumps(good | {"text": None})]
    (tmp_path / "0.jsonl").write_text("\n".join([*rows, '{"picture": []}', "null"]) + "\n")
    journal = Journal(tmp_path / "0.jsonl")
    assert [answer.text for answer in journal.of("p", "dense", "i")] == ["a cat"] and journal.tokens() == (1, 3, 4)
