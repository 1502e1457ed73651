"""What is wrong with a set of prompts before any picture is drawn, and how it lies beside the paper's set.

Light ring: standard library only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from prompts.taxonomies import Taxonomy
from train.rl.prompts.near import Texts, normal_form
from train.rl.prompts.prompt_set import Prompt, PromptSet, Rubric

_OPEN = re.compile(r"(?:what|which|who|whom|whose|how|why|where|when)\b", re.IGNORECASE)  # has no yes or no
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Bounds of `check`. The global rubric is not counted among the rubrics."""

    least_words: int = 3  # of a prompt
    most_words: int = 200
    least_rubrics: int = 2
    most_rubrics: int = 10  # the paper asks for ten, and the global one (section 2.4)
    most_rubric_words: int = 40
    near: float = 0.8  # two prompts are near-duplicates from this Jaccard similarity of three-word shingles on


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    where: str  # "line 12"
    id: str  # of the prompt
    what: str


def check(prompts: PromptSet, rules: Rules | None = None) -> list[Finding]:
    """Everything that is wrong, in the order of the file; an empty list: nothing is."""
    rules = rules or Rules()
    found: list[Finding] = []
    seen: dict[str, int] = {}  # normal form -> number
    texts = Texts(rules.near)
    for number, prompt in enumerate(prompts.prompts):
        flaws = list(prompt_flaws(prompt, rules))
        same = seen.setdefault(normal_form(prompt.prompt), number)
        if same != number:
            flaws.append(f"the same prompt as {prompts.where(same)}")
        elif near := texts.nearest(prompt.prompt):
            flaws.append(f"nearly the prompt of {prompts.where(near[0])}: {near[1]:.2f} of its shingles")
        texts.add(prompt.prompt)
        found += [Finding(prompts.where(number), prompt.id, flaw) for flaw in flaws]
    return found


def prompt_flaws(prompt: Prompt, rules: Rules) -> Iterator[str]:
    """What is wrong with one prompt and its rubrics, whatever else is in the set."""
    yield from text_flaws(prompt.prompt, rules)
    own = [rubric for rubric in prompt.rubrics if rubric.kind != "global"]
    yield from rubric_flaws(own, rules)
    if (times := len(prompt.rubrics) - len(own)) != 1:
        yield f"the global rubric is there {times} times, not once"
    asked = " ".join(rubric.text for rubric in own)
    for quoted in _QUOTED.findall(prompt.prompt):
        if quoted not in asked:
            yield f'no rubric asks for "{quoted}" letter by letter'


def text_flaws(text: str, rules: Rules) -> Iterator[str]:
    """What is wrong with the prompt's own text."""
    words = len(text.split())
    if not normal_form(text):
        yield "the prompt is empty"
    elif not rules.least_words <= words <= rules.most_words:
        yield f"the prompt has {words} words, not {rules.least_words} to {rules.most_words}"


def rubric_flaws(own: list[Rubric], rules: Rules) -> Iterator[str]:
    """What is wrong with a prompt's rubrics, the global one left out."""
    if not rules.least_rubrics <= len(own) <= rules.most_rubrics:
        yield f"{len(own)} rubrics, not {rules.least_rubrics} to {rules.most_rubrics}"
    times = Counter(normal_form(rubric.text) for rubric in own)
    for rubric in own:
        if not rubric.text.rstrip().endswith(("?", "？")) or _OPEN.match(rubric.text.lstrip()):
            yield f"the rubric {rubric.text!r} is no question to be answered with yes or no"
        if len(rubric.text.split()) > rules.most_rubric_words:
            yield f"the rubric {rubric.text[:40]!r}… has more than {rules.most_rubric_words} words"
        if times.pop(normal_form(rubric.text), 0) > 1:
            yield f"the rubric {rubric.text!r} is there more than once"


@dataclass(frozen=True, kw_only=True)
class Share:
    """One category beside its target."""

    category: str
    prompts: int
    share: float  # of all prompts, in percent
    target: int | None  # percent; None: the taxonomy has no such category


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Numbers of a set beside the taxonomy's shares."""

    prompts: int
    items: int  # different ones
    shares: tuple[Share, ...]
    sensitive: int  # prompts
    dimensions: dict[str, int]  # prompts that have it
    drawn: dict[int, int]  # how many dimensions -> prompts
    rubrics: dict[int, int]  # how many rubrics, the global one left out -> prompts
    rubric_kinds: dict[str, int]
    writers: dict[str, int]
    words: float  # of a prompt, on average
    share_source: str
    paper_prompts: int

    def lines(self) -> list[str]:
        """The numbers as text for people, a line each."""

        def row(counts: dict[str, int] | dict[int, int]) -> str:
            return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))

        return [
            f"{self.prompts:,} prompts (the paper's set: {self.paper_prompts:,}) about {self.items:,} items, "
            f"{self.words:.1f} words on average, {self.sensitive:,} sensitive",
            *(
                f"{share.category:10} {share.prompts:6,} {share.share:5.1f} %   target "
                + ("none" if share.target is None else f"{share.target} %")
                for share in self.shares
            ),
            f"targets: {self.share_source}",
            f"dimensions: {row(self.dimensions)}",
            f"dimensions a prompt: {row(self.drawn)}",
            f"rubrics a prompt: {row(self.rubrics)}",
            f"rubrics by kind: {row(self.rubric_kinds)}",
            f"written by: {row(self.writers)}",
        ]


def stats(prompts: PromptSet, taxonomy: Taxonomy) -> Stats:
    """Count a set. Categories in the taxonomy's order, then those that it does not know."""
    every = prompts.prompts
    targets = {category.name: category.share for category in taxonomy.categories}
    count = Counter(prompt.category for prompt in every)
    names = [*targets, *sorted(set(count) - set(targets))]
    total = max(1, len(every))
    return Stats(
        prompts=len(every),
        items=len({(prompt.category, normal_form(prompt.item)) for prompt in every}),
        shares=tuple(
            Share(category=name, prompts=count[name], share=100 * count[name] / total, target=targets.get(name))
            for name in names
        ),
        sensitive=sum(prompt.sensitive for prompt in every),
        dimensions=dict(Counter(name for prompt in every for name in prompt.dimensions)),
        drawn=dict(Counter(len(prompt.dimensions) for prompt in every)),
        rubrics=dict(Counter(sum(r.kind != "global" for r in prompt.rubrics) for prompt in every)),
        rubric_kinds=dict(Counter(rubric.kind for prompt in every for rubric in prompt.rubrics)),
        writers=dict(Counter(prompt.writer or "not said" for prompt in every)),
        words=sum(len(prompt.prompt.split()) for prompt in every) / total,
        share_source=taxonomy.share_source,
        paper_prompts=taxonomy.prompts,
    )
