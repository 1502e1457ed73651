"""Score with any vision model behind an OpenAI-compatible address: what it answers to a suite's own questions.

| scorer | asks | a picture's number |
|---|---|---|
| geneval-vision | each clause of the metadata as a question of yes or no | 1 where all are yes |
| oneig-vision | OneIG's questions, as its evaluator asks them | share of yes; a child of a no is a no |
| geneval2-vision | GenEval 2's questions, in one word | mean of P(right answer), and their geometric mean |
| unigenbench-vision | whether each test point is to be seen | share of yes |

The temperature is 0. No question says what the whole prompt was. With `oneig-vision` the number of the official rule
(the answer is exactly "Yes", one parent decides) stands beside a corrected one (yes in any form, all ancestors decide).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from backend.chat.address import Label, make_address
from backend.chat.client import Client
from backend.chat.replies import ChatReply, Message, picture_part, text_part
from backend.errors import FileError, UsageError
from train.suites.metrics import Metric, Row, mean_of_kinds, pooled
from train.suites.prompts import SuitePrompt, data_file, read_json
from train.suites.scorers.scorer import Score
from train.suites.table import Suite

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
LONGEST = 1536  # pixels: a picture is sent no larger
CHANCES = 20  # likeliest tokens that are asked for
KEY = "LENS_JUDGE_KEY"  # environment variable that holds the address's key
# The instruction with which LongText's and OneIG's evaluators have Qwen2.5-VL read.
READ = (
    "Recognize the text in the image, only reply with the text content, but avoid repeating previously mentioned "
    "content. If no text is recognized, please reply with 'No text recognized'."
)
_YES_NO = "{} Please answer 'Yes' or 'No' only."


@dataclass
class VisionModel:
    """One model at one address."""

    base_url: str
    model: str
    say: Callable[[str], None]
    timeout: float = 180.0  # seconds without an answer
    _clients: dict[int, Client] = field(default_factory=dict[int, Client])

    @property
    def named(self) -> str:
        """The model's name. Raises UsageError for none, and for an address that is none."""
        if not self.model:
            raise UsageError("no vision model was named", hint="--model-name NAME --base-url http://127.0.0.1:8000/v1")
        self._client(64)
        return self.model

    def _client(self, max_tokens: int) -> Client:
        if max_tokens not in self._clients:
            labels = {name: Label(f"--{flag}", f"--{flag}") for name, flag in _FLAGS.items()}
            labels["key"] = Label("the key", f"the environment variable {KEY}")
            address = make_address(
                self.base_url, self.model, key=os.environ.get(KEY), timeout=self.timeout, max_tokens=max_tokens,
                labels=labels,
            )  # fmt: skip
            self._clients[max_tokens] = Client(address, say=self.say)
        return self._clients[max_tokens]

    def ask(self, shown: Message, question: str, *, max_tokens: int = 64, chances: bool = False) -> ChatReply | None:
        """An answer about a picture; None where the model declines. Raises LensError."""
        messages = [{"role": "user", "content": [shown, text_part(question)]}]
        reply = self._client(max_tokens).complete(
            messages, temperature=0.0, seed=0, chances=CHANCES if chances else None
        )
        return None if reply.refused or not reply.text else reply

    def yes(self, shown: Message, question: str) -> tuple[str, bool | None]:
        """(the answer, whether it is yes; None: neither yes nor no, or the model declines)."""
        reply = self.ask(shown, _YES_NO.format(question))
        text = "" if reply is None else reply.text.strip()
        word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
        return text, None if word is None else word[1].lower() == "yes"


_FLAGS = {
    "base_url": "base-url", "model": "model-name", "timeout": "timeout", "limit": "timeout", "max_tokens": "timeout",
}  # fmt: skip


def shown_picture(picture: Image.Image) -> Message:
    """A picture as part of a message, no larger than LONGEST."""
    from train.judge.endpoint import as_png  # with Pillow

    return picture_part(as_png(picture, LONGEST), "image/png")


@dataclass
class VisionReader:
    """A vision model that reads text. `train.suites.scorers.text_scorers.Reader`."""

    model: VisionModel
    name: str = "vision"

    @property
    def identity(self) -> str:
        return f"vision {VERSION} {self.model.named}"

    def read(self, picture: Image.Image, words: int) -> list[str] | None:
        """Up to 1,024 tokens, as LongText's evaluator; None where the model declines."""
        reply = self.model.ask(shown_picture(picture), READ, max_tokens=1024)
        return None if reply is None else reply.text.splitlines()

    def close(self) -> None:
        pass


# ---------------------------------------------------------------------------------------------- questions of yes or no


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a picture, and the questions that have to be answered with yes before it."""

    text: str
    parents: tuple[int, ...] = ()  # places of others in the list


@dataclass
class QuestionScorer:
    """Asks a vision model questions. `train.suites.scorers.scorer.Scorer`."""

    name: str
    model: VisionModel
    questions: Callable[[SuitePrompt], Sequence[Asked]]
    judge: Callable[[SuitePrompt, Sequence[Asked], Sequence[str], Sequence[bool | None]], Row]
    metrics: Sequence[Metric]

    @property
    def identity(self) -> str:
        return f"{self.name} {VERSION} {self.model.named}"

    def applies(self, prompt: SuitePrompt) -> bool:
        return bool(self.questions(prompt))

    def check(self) -> None:
        """Prove that the model says no to what is not there and yes to what is. Raises UsageError."""
        from PIL import Image

        grey = shown_picture(Image.new("RGB", (256, 256), (153, 153, 153)))
        red = shown_picture(Image.new("RGB", (256, 256), (220, 20, 30)))
        false, true = "Is there an elephant in the picture?", "Is the picture red?"
        answers = [self.model.yes(grey, false), self.model.yes(red, true)]
        if [yes for _, yes in answers] != [False, True]:
            raise UsageError(
                f"{self.model.model} answers {answers[0][0][:30]!r} to an elephant in an empty picture, and "
                f"{answers[1][0][:30]!r} to red in a red one: nothing was scored",
                hint="a model that sees pictures is needed",
            )

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        shown, asked = shown_picture(picture), self.questions(prompt)
        answers = [self.model.yes(shown, one.text) for one in asked]
        if all(yes is None for _, yes in answers):
            return Score(row={}, why="no answer was yes or no")
        texts, said = [text for text, _ in answers], [yes for _, yes in answers]
        return Score(row=self.judge(prompt, asked, texts, said), seen=[text[:40] for text in texts])

    def nothing(self, prompt: SuitePrompt) -> Row:
        asked = self.questions(prompt)
        return self.judge(prompt, asked, ["No"] * len(asked), [False] * len(asked))

    def perfect(self, prompt: SuitePrompt) -> Row:
        asked = self.questions(prompt)
        return self.judge(prompt, asked, ["Yes"] * len(asked), [True] * len(asked))

    def close(self) -> None:
        pass


def geneval_questions(prompt: SuitePrompt) -> list[Asked]:
    """The metadata's clauses: presence and number, colour, place. Never the prompt itself."""
    include, asked = prompt.facts["include"], list[Asked]()
    exact = {clause["class"] for clause in prompt.facts["exclude"]}
    for clause in include:
        name, count = clause["class"], clause["count"]
        if name in exact:
            asked.append(Asked(text=f"Is the number of {name}s in the picture exactly {count}?"))
        elif count == 1:
            asked.append(Asked(text=f"Is there a {name} in the picture?"))
        else:
            asked.append(Asked(text=f"Are there at least {count} {name}s in the picture?"))
        if "color" in clause:
            asked.append(Asked(text=f"Is the {name} {clause['color']}?"))
        if "position" in clause:
            relation, other = clause["position"]
            words = f"to the {relation}" if relation in ("left of", "right of") else relation
            asked.append(Asked(text=f"Is the {name} {words} the {include[other]['class']}?"))
    return asked


def _all_yes(prompt: SuitePrompt, asked: Sequence[Asked], texts: Sequence[str], answers: Sequence[bool | None]) -> Row:
    return {"right": float(all(yes is True for yes in answers)), "yes": _share([yes is True for yes in answers])}


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def geneval_vision(model: VisionModel) -> QuestionScorer:
    """Make `geneval-vision`."""
    metrics = (
        Metric(
            name="geneval-vision", value=mean_of_kinds("right"), by_kind=True, paper="geneval", note="mean of kinds"
        ),
        Metric(name="geneval-vision, pictures", value=pooled("right")),
        Metric(name="geneval-vision, questions", value=pooled("yes")),
    )
    return QuestionScorer("geneval-vision", model, geneval_questions, _all_yes, metrics)


def unigenbench_vision(model: VisionModel) -> QuestionScorer:
    """Make `unigenbench-vision`; the official judge gets the prompt and explains itself: this is another score."""

    def questions(prompt: SuitePrompt) -> list[Asked]:
        points = prompt.facts["points"]
        return [Asked(text=f"Does the picture show this ({kind}): {what}?") for kind, what in points]

    metrics = (Metric(name="unigenbench-vision", value=pooled("yes")),)
    return QuestionScorer("unigenbench-vision", model, questions, _all_yes, metrics)


def oneig_vision(model: VisionModel, suite: Suite, data: Path) -> QuestionScorer:
    """Make `oneig-vision`, OneIG's alignment. Raises FileError where its questions are not in `data`."""
    table = {kind: _oneig_questions(file, data) for file in suite.more[1:] for kind in [_class_of(file)]}

    def questions(prompt: SuitePrompt) -> Sequence[Asked]:
        return table.get(prompt.kind, {}).get(prompt.facts["id"], ())

    metrics = (
        Metric(
            name="oneig-vision, alignment", value=pooled("official"), reduce="mean", official=True, by_kind=True,
            note="exactly “Yes”; one parent decides",
        ),
        Metric(name="oneig-vision, corrected", value=pooled("fair"), reduce="mean"),
    )  # fmt: skip
    return QuestionScorer("oneig-vision", model, questions, oneig_row, metrics)


def oneig_row(prompt: SuitePrompt, asked: Sequence[Asked], texts: Sequence[str], answers: Sequence[bool | None]) -> Row:
    """`official`: the answer is exactly "Yes" and so are its parents'; `fair`: yes, and so are all above it."""
    exact, loose = [text == "Yes" for text in texts], [yes is True for yes in answers]
    official = [exact[n] and all(exact[parent] for parent in one.parents) for n, one in enumerate(asked)]

    def holds(place: int, seen: frozenset[int] = frozenset()) -> bool:
        above = [parent for parent in asked[place].parents if parent not in seen]
        return loose[place] and all(holds(parent, seen | {place}) for parent in above)

    return {"official": _share(official), "fair": _share([holds(n) for n in range(len(asked))])}


def _class_of(file: str) -> str:
    return Path(file).stem.removesuffix("_zh")


def _oneig_questions(file: str, data: Path) -> dict[str, list[Asked]]:
    path = data_file(data, file)
    if path is None:
        raise FileError(f"{data} holds no {file}: OneIG's questions", hint="its folder scripts/alignment has them")
    table: dict[str, list[Asked]] = {}
    said = read_json(path)
    try:
        for own, entry in cast("Mapping[str, Mapping[str, Any]]", said).items():
            texts, above = _numbered(entry["question"]), _numbered(entry["dependency"])
            order = {number: place for place, number in enumerate(sorted(texts))}
            table[own] = [
                Asked(
                    text=str(texts[number]),
                    parents=tuple(order[parent] for parent in above.get(number, []) if parent in order),
                )
                for number in order
            ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} has questions that cannot be read: {str(error)[:60]}") from error
    return table


def _numbered(entry: Any) -> dict[int, Any]:
    """A map with numbers as keys; published as a JSON text inside the JSON."""
    entry = json.loads(entry) if isinstance(entry, str) else entry
    return {int(key): value for key, value in entry.items()}


# ---------------------------------------------------------------------------------------------------------- GenEval 2


@dataclass
class SoftTifa:
    """`geneval2-vision`: the probability of each right answer. `train.suites.scorers.scorer.Scorer`."""

    model: VisionModel
    name: str = "geneval2-vision"
    metrics: Sequence[Metric] = (
        Metric(name="geneval2-vision, mean (AM)", value=pooled("am"), by_kind=True),
        Metric(name="geneval2-vision, geometric (GM)", value=pooled("gm")),
    )

    @property
    def identity(self) -> str:
        return f"{self.name} {VERSION} {self.model.named}"

    def applies(self, prompt: SuitePrompt) -> bool:
        return bool(prompt.facts["questions"])

    def check(self) -> None:
        """As `QuestionScorer.check`, and that the address tells probabilities. Raises UsageError."""
        from PIL import Image

        red = shown_picture(Image.new("RGB", (256, 256), (220, 20, 30)))
        share = self._probability(red, "What colour is the picture?", "red")
        if share is None:
            raise UsageError(
                f"{self.model.base_url} tells no probabilities of tokens, which Soft-TIFA is made of",
                hint="llama-server and vLLM tell them (logprobs)",
            )
        if share < 0.5:
            raise UsageError(f"{self.model.model} calls a red picture red with P = {share:.2f}: nothing was scored")

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        shown = shown_picture(picture)
        found = [self._probability(shown, question, right) for question, right in prompt.facts["questions"]]
        known = [share for share in found if share is not None]
        if len(known) < len(found):
            return Score(row={}, why="an answer had no probabilities")
        return Score(row=_means(known), seen=[round(share, 4) for share in known])

    def nothing(self, prompt: SuitePrompt) -> Row:
        return {"am": 0.0, "gm": 0.0}

    def perfect(self, prompt: SuitePrompt) -> Row:
        return {"am": 1.0, "gm": 1.0}

    def close(self) -> None:
        pass

    def _probability(self, shown: Message, question: str, right: str) -> float | None:
        """P(the right answer's first token) at the first place of the answer; None: not told."""
        end = "" if question.rstrip().endswith((".", "?")) else "."
        reply = self.model.ask(shown, f"{question}{end} Answer in one word.", max_tokens=8, chances=True)
        if reply is None or not reply.chances:
            return None
        first = reply.chances[0]
        return min(
            1.0, sum(math.exp(p) for t, p in {first.text: first.logprob, **first.others}.items() if _is(t, right))
        )


def _is(token: str, right: str) -> bool:
    """Whether a token is the right answer, or its beginning where the answer has more tokens."""
    word, wanted = token.strip().lower(), right.strip().lower()
    return bool(word) and (word == wanted or (len(word) > 2 and wanted.startswith(word)))


def _means(shares: Sequence[float]) -> Row:
    logs = [math.log(max(share, 1e-12)) for share in shares]
    return {"am": sum(shares) / len(shares), "gm": math.exp(sum(logs) / len(logs))}
