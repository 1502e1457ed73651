"""Scorers on pictures and answers whose right score is known by construction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from backend.errors import FileError, LensError, UsageError
from tests.backend.scripted_endpoint import Endpoint, completion
from tests.train.suites import published
from train.suites.folder import REFUSED
from train.suites.official import imported_scorer, read_oneig, read_results, scorer_of_file
from train.suites.paper import MODELS
from train.suites.prompts import SuitePrompt, read_prompts
from train.suites.report import report, table
from train.suites.scorers import text_metrics as t
from train.suites.scorers.geneval_rules import CLASSES, Detection, judge, relations
from train.suites.scorers.table import ScorerSettings, make_scorer, read_reward, scorers_for
from train.suites.scorers.text_scorers import COUNTINGS, RapidOcr, TextScorer
from train.suites.scorers.vision import Asked, oneig_row
from train.suites.scores import score
from train.suites.table import SUITES, suite_of

# ------------------------------------------------------------------------------------------------- counting of text


def test_cvtg_counts_apostrophes_as_quotes_and_corrected_it_does_not() -> None:
    prompt = "A shirt that says 'Don't Stop' and a mug with 'World's Best Dad'"
    assert t.cvtg_words(prompt) == ["don", "and", "a", "mug", "with", "s", "best", "dad"]
    right = ["don't", "stop", "world's", "best", "dad"]
    assert t.fair_words(prompt, ()) == right == t.fair_words("x", ["Don't Stop", "World's Best Dad"])
    seen = t.cvtg(prompt, (), ["DON'T STOP", "World's best dad!"])
    assert seen["fair_found"] == seen["fair_words"] == 5 and seen["found"] < seen["words"]
    # A word that is asked for twice and stands once.
    twice = t.cvtg("'go go'", (), ["go"])
    assert twice["found"] == 2 and twice["fair_found"] == 1
    assert t.cvtg("'sale'", (), ["Sale,"])["found"] == 0 and t.cvtg("'sale'", (), ["Sale,"])["fair_found"] == 1


def test_longtext_cuts_the_last_phrase_only_and_does_not_mind_more_text() -> None:
    seen = t.longtext(["add criterion"], "addCriterion add criterion and much more", "en")
    assert (seen["matched"], seen["words"]) == (2, 2) and seen["fair_words"] == 5
    assert t.longtext(["No parking"], "No text recognized", "en")["matched"] == 1  # "no" of the phrase itself
    assert t.longtext(["No parking"], "No text recognized", "en")["fair_matched"] == 0
    assert t.longtext(["你好", "世界"], "世界你好!", "zh")["matched"] == 4
    assert t.longtext(["It’s 5 o'clock!"], "its 5 OCLOCK", "en") == {
        "matched": 3, "words": 3, "fair_matched": 3, "fair_words": 3
    }  # fmt: skip


def test_oneig_minds_case_and_exactness() -> None:
    assert t.oneig("Open, 24 hours", "Open 24 hours")["exact"] == 1
    assert t.oneig("Open", "open") == {"edits": 1, "exact": 0.0, "matched": 0, "words": 1}
    assert t.oneig("你好 世界", "你好世界")["exact"] == 1
    assert t.edit_distance("kitten", "sitting") == 3 and t.edit_distance("", "abc") == 3


def test_oneig_counts_a_black_grid_with_the_text_of_the_prompt_before() -> None:
    """Official: the second prompt's missing pictures count as the first's text; corrected it counts as nothing."""
    scorer = TextScorer(RapidOcr(), COUNTINGS["oneig-en"])
    prompts = [
        SuitePrompt(id=f"text-00{n}", kind="text", number=n, prompt="x", texts=(text,))
        for n, text in enumerate(("Open now", "Open late"))
    ]
    states = {("text-000", 0): "made", ("text-001", 0): REFUSED}
    carried = scorer.carried(prompts, 1, states, {("text-000", 0): "Open now"})
    assert carried == {"text-001": [t.oneig("Open late", "Open now")]} and carried["text-001"][0]["matched"] == 1
    assert scorer.nothing(prompts[1])["matched"] == 0
    assert TextScorer(RapidOcr(), COUNTINGS["cvtg"]).carried(prompts, 1, states, {}) == {}


def written(lines: list[str]) -> Image.Image:
    picture = Image.new("RGB", (640, 70 * len(lines) + 30), (250, 248, 240))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(34)
    for n, line in enumerate(lines):
        draw.text((24, 20 + 70 * n), line, fill=(20, 20, 30), font=font)
    return picture


def test_rendered_text_scores_one_with_rapidocr() -> None:
    """One reading serves all three suites; 40 pictures a suite: python -m benchmarks.text_scores."""
    pytest.importorskip("rapidocr")
    lines = ["Fresh bread every morning", "Open from 8 to 17"]
    reader = RapidOcr()
    read = reader.read(written(lines), 8)
    assert read is not None
    for suite, texts, prompt in (
        ("longtext-en", tuple(lines), "x"), ("oneig-en", (" ".join(lines),), "x"),
        ("cvtg", tuple(lines), f"A board with '{lines[0]}' and '{lines[1]}'"),
    ):  # fmt: skip
        row = COUNTINGS[suite].count(SuitePrompt(id="0", kind="sign", number=0, prompt=prompt, texts=texts), read)
        best = COUNTINGS[suite].perfect(SuitePrompt(id="0", kind="sign", number=0, prompt=prompt, texts=texts))
        assert all(row[name] == pytest.approx(best[name], abs=0.01) for name in row), (suite, row, read)


# -------------------------------------------------------------------------------------------------- GenEval's rules


def seen(kind: str, at: tuple[float, float], confidence: float = 0.95, size: float = 10) -> Detection:
    x, y = at
    return Detection(kind=kind, confidence=confidence, box=(x, y, x + size, y + size))


def no_colour(kind: str, some: Any) -> list[str]:
    return ["red" for _ in some]


def verdict(kind: str, include: list[dict[str, Any]], found: list[Detection], exclude: Any = ()) -> bool:
    return judge(kind, include, exclude, found, no_colour)[0]


def test_genevals_rules_on_known_detections() -> None:
    one, two = [{"class": "cat", "count": 1}], [{"class": "cat", "count": 2}]
    three = [{"class": "cat", "count": 3}]
    a, b, c = (seen("cat", (x, 0)) for x in (0, 30, 60))
    assert verdict("single_object", one, [a]) and not verdict("single_object", one, [seen("dog", (0, 0))])
    assert verdict("counting", two, [a, b], three) and not verdict("counting", two, [a, b, c], three)
    assert verdict("single_object", one, [a, b, c])  # more than asked for is no failure where nothing excludes it
    # 0.3 does where things are named, 0.9 where they are counted.
    unsure = seen("cat", (30, 0), 0.5)
    assert verdict("two_object", two, [a, unsure]) and not verdict("counting", two, [a, unsure], three)
    assert not verdict("single_object", one, [seen("cat", (0, 0), 0.3)])  # above, not at
    # Of 40 cats 16 count: 17 are never reached.
    many = [seen("cat", (n, 0)) for n in range(40)]
    assert not verdict("two_object", [{"class": "cat", "count": 17}], many)
    red, blue = [{"class": "cat", "count": 1, "color": "red"}], [{"class": "cat", "count": 1, "color": "blue"}]
    assert verdict("colors", red, [a]) and not verdict("colors", blue, [a])


def test_places_are_genevals() -> None:
    assert relations((0, 0, 10, 10), (30, 0, 40, 10)) == {"left of"}
    assert relations((0, 30, 10, 40), (0, 0, 10, 10)) == {"below"}
    assert relations((0, 0, 10, 10), (1, 1, 11, 11)) == set()  # within a tenth of both sizes
    assert relations((0, 0, 10, 10), (0, 0, 10, 10)) == set()
    assert relations((0, 0, 10, 10), (40, 40, 50, 50)) == {"left of", "above"}
    clause = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    cat, dog = seen("cat", (50, 0)), seen("dog", (0, 0))
    assert verdict("position", clause, [cat, dog]) and not verdict("position", clause[:1] + clause[1:], [cat])
    assert not verdict("position", clause, [seen("cat", (0, 0)), seen("dog", (50, 0))])
    # Of two dogs the surer one is asked where it is.
    assert not verdict("position", clause, [cat, seen("dog", (0, 0), 0.8), seen("dog", (90, 0), 0.99)])
    assert not verdict("position", clause, [dog])  # no cat to be left of


def test_a_tiny_mask2former_and_clip_run_the_whole_way(tmp_path: Path) -> None:
    """Random weights in the published form: detections of COCO's classes, masks of the picture's size, colours."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPModel,
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
    )
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    from train.suites.scorers.detector import Clip, GenevalRules, Loaded, Mask2FormerDetector, cut_out

    torch.manual_seed(0)
    cpu = torch.device("cpu")
    tiny: dict[str, Any] = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2, "image_size": 32,
                            "out_features": [f"stage{n}" for n in range(1, 5)]}  # fmt: skip
    rest: dict[str, Any] = {
        "backbone_config": SwinConfig(**tiny), "num_labels": len(CLASSES), "hidden_dim": 32,
        "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
        "dim_feedforward": 16, "encoder_feedforward_dim": 16, "num_queries": 8,
    }  # fmt: skip
    config = Mask2FormerConfig(**rest)
    processor = Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}, do_resize=True)
    detector = Mask2FormerDetector(Mask2FormerForUniversalSegmentation(config).eval(), processor, cpu).checked("tiny")
    with torch.no_grad():  # random logits are near 1/81: made sure, so that something passes the threshold
        detector.model.class_predictor.weight.mul_(400)
    picture = published.picture_of(SuitePrompt(id="0", kind="a", number=3, prompt="x"), 0, (48, 40))
    found = detector.detect(picture)
    assert found and all(d.kind in CLASSES and d.mask.shape == (40, 48) and d.confidence > 0.3 for d in found)
    rows, columns = np.nonzero(found[0].mask)
    assert found[0].box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert cut_out(picture, found[0]).size == (columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min())

    clip_config = CLIPConfig(
        text_config={"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 16, "max_position_embeddings": 16},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                       "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip

    class Words:
        """Stands for CLIP's processor: letters as numbers, pictures as small squares."""

        def __call__(self, images: Any = None, text: Any = None, **_: Any) -> Any:
            from transformers import BatchFeature

            if images is not None:
                small = [np.asarray(one.resize((16, 16))).transpose(2, 0, 1) / 255 for one in images]
                return BatchFeature({"pixel_values": torch.tensor(np.stack(small), dtype=torch.float32)})
            ids = torch.tensor([[ord(c) % 60 for c in one.ljust(16)[-16:]] for one in text])
            return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    clip = Clip(CLIPModel(clip_config).eval(), Words(), cpu)
    scorer = GenevalRules(lambda: Loaded(clip=clip, detector=detector, identity="tiny"))
    prompts = read_prompts(suite_of("geneval"), None)
    said = [scorer.score(picture, prompt) for prompt in (prompts[0], prompts[-1])]
    assert all(one.row["right"] in (0.0, 1.0) for one in said) and scorer.identity == "geneval-rules 1 tiny"
    assert 0.0 <= clip.score(picture, "a photo") <= 2.5
    wanted = {"class": found[0].kind, "count": 1, "color": clip.colours(picture, found[0].kind, found[:1])[0]}
    assert judge("colors", [wanted], [], found, lambda kind, some: clip.colours(picture, kind, some))[0]


# ------------------------------------------------------------------------------------------------------ vision models


def test_oneig_rules_official_and_corrected() -> None:
    """ "Yes." is no "Yes" to the official rule, and a grandparent's no does not reach it."""
    asked = [Asked(text="1"), Asked(text="2", parents=(0,)), Asked(text="3", parents=(1,))]
    prompt = SuitePrompt(id="0", kind="anime", number=0, prompt="x")
    assert oneig_row(prompt, asked, ["Yes"] * 3, [True] * 3) == {"official": 1.0, "fair": 1.0}
    assert oneig_row(prompt, asked, ["Yes."] * 3, [True] * 3) == {"official": 0.0, "fair": 1.0}
    found = oneig_row(prompt, asked, ["No", "Yes", "Yes"], [False, True, True])
    assert found["official"] == pytest.approx(1 / 3) and found["fair"] == 0.0


def eyes(body: dict[str, Any]) -> Any:
    """A model that tells a red picture, reads a fixed text, and knows nothing else."""
    from tests.train.suites.eyes import look

    content = body["messages"][0]["content"]
    asked = next(part["text"] for part in content if part["type"] == "text")
    return completion(look(asked, next(p["image_url"]["url"] for p in content if p["type"] == "image_url")))


def test_a_vision_model_scores_and_one_that_says_yes_to_all_does_not(tmp_path: Path) -> None:
    data = published.write(tmp_path / "data", "geneval")
    run, suite, prompts = published.draw_run(tmp_path / "run", "geneval", data, 1)
    with Endpoint(eyes) as endpoint:
        settings = ScorerSettings(base_url=endpoint.url, model="m")
        said = score(run, prompts, 1, make_scorer("vision", suite, settings))
        assert [said.rows[p.id, 0]["right"] for p in prompts] == [1.0, 0.0, 0.0]  # "Is there a cat?" alone is a yes
        asked = len(endpoint.asked)
        again = score(run, prompts, 1, make_scorer("vision", suite, settings))
        assert again.rows == said.rows and len(endpoint.asked) == asked  # nobody was asked twice
    with Endpoint(completion("Yes")) as endpoint:
        blind = make_scorer("vision", suite, ScorerSettings(base_url=endpoint.url, model="blind"))
        with pytest.raises(UsageError, match="elephant"):
            score(run, prompts, 1, blind)


def test_a_report_holds_protocol_coverage_and_failures(tmp_path: Path) -> None:
    data = published.write(tmp_path / "data", "longtext-en")
    run, suite, prompts = published.draw_run(tmp_path / "run", "longtext-en", data, 4, {("0100", 0): REFUSED})

    class Perfect:
        name, identity = "rapidocr", "drawn"

        def read(self, picture: Image.Image, words: int) -> list[str]:
            return ["Fresh bread", "every day"] if min(picture.size) < 40 else ["LENS"] if words else []

        def close(self) -> None: ...

    scorer = TextScorer(Perfect(), COUNTINGS["longtext-en"])
    scorer.check = lambda: None  # type: ignore[method-assign]
    said = score(run, prompts, 4, scorer)
    assert len(said.rows) == 11
    found = report(run, suite, prompts, {scorer.name: scorer})
    (of,) = [one for one in found.scorers[scorer.name][1] if one.metric.name == "longtext-rapidocr"]
    assert of.official is not None and of.zeroed is not None
    assert (of.official.value, of.scored, of.wanted) == (1.0, 11, 12) and of.zeroed.value == pytest.approx(11 / 12)
    text = "\n".join(table(suite, [found, found], compare=True))
    for words in ("rewriter", "SHA-256", "32x32", "20 steps", "guidance 5.0", "seeds", "transformer abababab",
                  "11/12", "0.917", "1 refused", "0.937", "not the official scorer"):  # fmt: skip
        assert words in text, words
    assert max(map(len, text.splitlines())) <= 100
    # Another picture in the place of a scored one: what was said of the other does not count.
    published.picture_of(prompts[0], 2).save(run.picture(prompts[0], 0))
    assert len(score(run, prompts, 4, scorer).rows) == 11  # its line still names the drawn pixels
    with pytest.raises(UsageError, match="not those"):
        report(run, suite, prompts[:2], {})


def test_official_results_are_read_back(tmp_path: Path) -> None:
    suite = suite_of("geneval")
    prompts = read_prompts(suite, published.write(tmp_path / "data", "geneval"))
    lines = [{"filename": f"/x/0000{n}/samples/0000{k}.png", "correct": n == 1} for n in range(3) for k in range(2)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_results(suite, tmp_path / "results.jsonl", prompts)
    assert len(found) == 6 and found["00001", 1][0] == {"right": 1.0} and found["00002", 0][0] == {"right": 0.0}
    scorer = imported_scorer("geneval-official", suite)
    assert scorer is not None and scorer.metrics[0].paper == "geneval"
    (tmp_path / "results.jsonl").write_text('{"filename": 7}\n')
    with pytest.raises(FileError, match="line 1"):
        read_results(suite, tmp_path / "results.jsonl", prompts)
    oneig = tmp_path / "oneig"
    oneig.mkdir()
    (oneig / "text_score_EN_1.csv").write_text(",ED,CR,WAC,text score\nlens,1,0.5,0.9,0.96\n")
    (oneig / "alignment_score_EN_1.csv").write_text(",alignment\nlens,0.88\nother,0.1\n")
    assert read_oneig(suite_of("oneig-en"), oneig, "lens") == {"alignment": 0.88, "text": 0.96}


def test_every_scorer_that_needs_nothing_loads_nothing_for_a_report() -> None:
    settings = ScorerSettings(data=None)
    for suite, file in (("geneval", "geneval-rules"), ("geneval", "geneval-vision"), ("cvtg", "cvtg-rapidocr"),
                        ("cvtg", "cvtg-clip"), ("nano", "nano-rules"), ("longtext-zh", "longtext-vision"),
                        ("geneval2", "geneval2-vision"), ("unigenbench", "unigenbench-vision")):  # fmt: skip
        found = scorer_of_file(file, suite_of(suite), settings, ["right"])
        assert found is not None and found.name == file and found.metrics
    served = scorer_of_file("served", suite_of("geneval"), settings, ["clip", "hps"])
    assert served is not None and [m.name for m in served.metrics] == ["served clip", "served hps"]
    assert scorer_of_file("nobody", suite_of("geneval"), settings, []) is None
    assert all(scorers_for(suite) for suite in SUITES.values())
    with pytest.raises(UsageError, match="says nothing about"):
        make_scorer("nano-rules", suite_of("geneval"), settings)
    with pytest.raises(LensError, match="needs a vision model"):
        make_scorer("vision", suite_of("geneval"), settings).identity  # noqa: B018
    reward = read_reward("hps.v2=0.2..0.4")
    assert (reward.name, reward.metric, reward.low, reward.high) == ("hps", "v2", 0.2, 0.4)


def test_the_papers_numbers() -> None:
    """As its Tables 2, 5 and 6 print them; the text of a blog has .525 and .519 for GenEval, which are OneIG's."""
    assert MODELS["Lens (20 steps)"]["geneval"] == 0.930 and MODELS["Lens-Turbo (4 steps)"]["geneval"] == 0.914
    assert MODELS["Lens (20 steps)"]["oneig-zh"] == 0.525 and MODELS["Lens, no reasoner"]["geneval"] == 0.843
    assert MODELS["Lens (20 steps)"]["cvtg-5"] == 0.827 and "geneval" not in MODELS["BAGEL 14B"]
    assert len(MODELS) == 24
