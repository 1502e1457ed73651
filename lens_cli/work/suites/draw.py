"""What `lens eval list`, `plan` and `generate` do: the suites, what a run would cost, and the pictures.

Light ring at module scope; torch, Pillow and the suites themselves are imported where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from backend.cache.store import Stores
from backend.errors import CancelledError, LensError, UsageError
from backend.events import Generation, PictureFailed
from backend.presets import default_name
from backend.requests import FoundModel, ResolvedRequest, build_request, check_prompt, find_model
from backend.session import Session
from backend.settings import Settings, load
from backend.types import ReasonerMode
from backend.wish import Wish
from lens_cli.terminal.console import Talk
from lens_cli.terminal.progress import say_remarks
from lens_cli.work.interrupt import Interrupt
from lens_cli.work.reasoner import AskedReasoner, ask_reasoner

if TYPE_CHECKING:
    from train.suites.folder import Sample, Shard
    from train.suites.generate import OnRefusal, Wording
    from train.suites.plan import Cost
    from train.suites.prompts import SuitePrompt
    from train.suites.table import Suite

_LISTED = "{:<11} {:>7} {:>4}  {:<7} {:<12} {}"
SAID_EVERY = 20  # pictures between two lines of progress


@dataclass(frozen=True, kw_only=True)
class SuiteChoice:
    """What was typed for a suite's pictures; None means the suite's or the model's default."""

    suite: str
    wish: Wish  # of every picture: the model, and how it draws
    data: Path | None
    fetch: bool
    images: int | None
    limit: int | None
    per_kind: int | None
    kinds: tuple[str, ...]
    shard: str | None  # "2/4"
    reasoners: tuple[ReasonerMode, ...]
    rewrites: Literal["one", "each"]
    out: Path | None
    seed: int = 0
    on_refusal: OnRefusal = "original"


def list_suites(talk: Talk) -> None:
    """Print the suites, what they need, and who can score them."""
    from train.suites.download import fetched_dir
    from train.suites.scorers.table import scorers_for
    from train.suites.table import SUITES

    rows = list[dict[str, Any]]()
    talk.heading(_LISTED.format("SUITE", "PROMPTS", "EACH", "DATA", "LICENCE", "SCORERS"))
    for suite in SUITES.values():
        here = "here" if suite.shipped else "fetched" if fetched_dir(suite) else "--fetch" if suite.urls else "--data"
        scorers = [row.name for row in scorers_for(suite) if row.name != "served"]
        rows.append(
            {
                "name": suite.name, "title": suite.title, "prompts": suite.prompts, "images": suite.images,
                "data": here, "licence": suite.licence, "source": suite.source, "scorers": [*scorers, "served"],
            }
        )  # fmt: skip
        licence = suite.licence.split(" (")[0]
        talk.data(_LISTED.format(suite.name, suite.prompts, suite.images, here, licence, ", ".join(scorers)))
    talk.say("EACH: pictures of a prompt. DATA: here is part of lens, --fetch gets it, --data DIR reads it.")
    talk.say("Every suite can be scored by served (a score server) and official too.")
    talk.result({"suites": rows})


def plan_suite(choice: SuiteChoice, measure: bool, talk: Talk) -> None:
    """Print what a run would cost; `measure`: draw one prompt's first picture twice and time the second."""
    from train.suites.plan import questions_of

    settings = load(talk.warn)
    suite, prompts = read_suite(choice, talk)
    if measure and choice.out is not None:
        raise UsageError("--measure draws beside any run", hint="drop --out")
    data = list[dict[str, Any]]()
    with Session(settings, stores=Stores()) as session:
        for mode in choice.reasoners:
            run = _Run.of(choice, suite, prompts, mode, settings, talk)
            measured = run.measure(session) if measure else None
            cost = run.cost(measured)
            talk.data(f"{suite.title}, {run.resolved.request.model}, reasoner {run.name}")
            for line in cost.lines():
                talk.data(f"  {line}")
            data.append({"reasoner": run.name, **cost.data()})
    asked = questions_of(suite, prompts, choice.images or suite.images)
    talk.data("scorers")
    for name, count, unit in asked:
        talk.data(f"  {name:<15}{count:>9,} {unit}")
    talk.result({"suite": suite.name, "runs": data, "scorers": [[*row] for row in asked]})


def generate_suite(choice: SuiteChoice, talk: Talk) -> None:
    """Draw a suite; of several reasoners each has a folder of its own below --out.

    Raises CancelledError on Ctrl-C; finished pictures are kept and the same command goes on.
    """
    settings = load(talk.warn)
    suite, prompts = read_suite(choice, talk)
    out = choice.out
    if out is None:
        raise UsageError("where do the pictures go?", hint="--out DIR: the same folder again goes on")
    made = list[dict[str, Any]]()
    with Session(settings, stores=Stores()) as session:
        for mode in choice.reasoners:
            run = _Run.of(choice, suite, prompts, mode, settings, talk)
            folder = out / run.name if len(choice.reasoners) > 1 else out
            made.append(run.draw(session, folder))
            talk.data(folder)
    talk.result({"runs": made})


def read_suite(choice: SuiteChoice, talk: Talk) -> tuple[Suite, tuple[SuitePrompt, ...]]:
    """The suite and the prompts that were asked for. Raises UsageError, FileError, NetworkError."""
    from train.suites.download import fetch, fetched_dir
    from train.suites.prompts import choose, read_prompts
    from train.suites.table import suite_of

    suite = suite_of(choice.suite)
    if choice.fetch:
        if choice.data is not None:
            raise UsageError("--fetch and --data exclude each other")
        fetch(suite, talk.say)
    prompts = read_prompts(suite, choice.data, fetched_dir(suite))
    if len(prompts) != suite.prompts:
        talk.warn(f"{suite.name} has {len(prompts):,} prompts here; {suite.prompts:,} were published")
    return suite, choose(prompts, choice.limit, choice.per_kind, choice.kinds)


def read_shard(text: str | None) -> Shard:
    """`2/4` -> the second of four. Raises UsageError."""
    from train.suites.folder import Shard

    if text is None:
        return Shard()
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        number = count = 0
    if not 1 <= number <= count <= 1000:
        raise UsageError(f"--shard {text!r} is no part of a whole", hint="such as 2/4: the second of four")
    return Shard(number=number, count=count)


@dataclass(kw_only=True)
class _Run:
    """One way to draw a suite: with one reasoner, or without."""

    choice: SuiteChoice
    suite: Suite
    prompts: Sequence[SuitePrompt]
    resolved: ResolvedRequest
    reasoner: AskedReasoner | None
    images: int
    shard: Shard
    talk: Talk

    @classmethod
    def of(
        cls, choice: SuiteChoice, suite: Suite, prompts: Sequence[SuitePrompt], mode: ReasonerMode,
        settings: Settings, talk: Talk,
    ) -> _Run:  # fmt: skip
        """Raises UsageError, ModelMissingError."""
        from train.suites.layouts import MOST_IMAGES

        found = find_model(choice.wish.model or settings.model or default_name())
        asked = ask_reasoner(settings, found, talk, mode=mode, system_prompt=_system_prompt(choice, suite, mode, found))
        images = choice.images or suite.images
        if not 1 <= images <= MOST_IMAGES:
            raise UsageError(f"--n {images} is outside 1..{MOST_IMAGES}")
        shape = {} if choice.wish.size else {"ar": "1:1"}
        shared = replace(choice.wish, prompt=prompts[0].prompt, seeds=(str(choice.seed),), system_prompt=None, **shape)
        resolved = build_request(shared, settings, talk.warn, found=found)
        return cls(
            choice=choice, suite=suite, prompts=prompts, resolved=resolved, reasoner=None if asked.off else asked,
            images=images, shard=read_shard(choice.shard), talk=talk,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return "off" if self.reasoner is None else str(self.reasoner.plan.mode)

    def protocol(self) -> dict[str, Any]:
        """What decides the pictures."""
        from backend.checkpoints.identity import identify_model
        from train.suites.prompts import fingerprint

        request, choice = self.resolved.request, self.choice
        plan = None if self.reasoner is None else self.reasoner.plan.data()
        return {
            "suite": self.suite.name,
            "prompts": {
                "ids": [prompt.id for prompt in self.prompts], "total": self.suite.prompts,
                "sha256": fingerprint(self.prompts), "source": self.suite.source,
            },
            "images": self.images, "seed": choice.seed, "model": request.model,
            "weights": identify_model(self.resolved.need_files()).sha256,
            "width": request.width, "height": request.height, "steps": request.steps, "guidance": request.guidance,
            "sampler": str(request.sampler), "dtype": str(request.dtype), "encoder": str(request.encoder),
            "quant": str(request.quant), "loras": [[use.sha256, use.scale] for use in request.loras],
            "negative_prompt": request.negative_prompt, "rl_strength": request.rl_strength,
            "reasoner": None if plan is None else {key: value for key, value in plan.items() if key != "why"},
            "rewrites": choice.rewrites if plan is not None else None,
            "on_refusal": choice.on_refusal if plan is not None else None,
        }  # fmt: skip

    def cost(self, measured: tuple[float, float | None] | None, done: Sequence[Sample] = ()) -> Cost:
        from train.suites.folder import RunFolder
        from train.suites.plan import cost_of

        request, out = self.resolved.request, self.choice.out
        if not done and out is not None:
            here = RunFolder(out / self.name if len(self.choice.reasoners) > 1 else out)
            done = [*here.samples().values()] if here.path.is_dir() else []
        each = self.images if self.choice.rewrites == "each" else 1
        return cost_of(
            self.prompts, self.images, self.shard, done, rewrites=0 if self.reasoner is None else each,
            size=(request.width, request.height), model=request.model, measured=measured,
        )  # fmt: skip

    def measure(self, session: Session) -> tuple[float, float | None]:
        """(seconds of a warm picture, of a rewrite). Raises what drawing does."""
        import time

        from train.suites.generate import Wording

        first, rewriting = self.prompts[0].prompt, None
        if self.reasoner is not None:
            began = time.perf_counter()
            try:
                self.rewrite(session)(first, 0)
            except LensError as error:
                self.talk.warn(f"the first prompt was not rewritten: {error}")
            rewriting = time.perf_counter() - began
        draw, began = self._drawer(session), 0.0
        for _ in range(2):  # the first also loads
            began = time.perf_counter()
            draw(first, Wording(prompt=first), self.choice.seed)
        return time.perf_counter() - began, rewriting

    def draw(self, session: Session, path: Path) -> dict[str, Any]:
        """Draw what is missing in a folder; what it holds then, for JSON."""
        from train.suites.folder import MADE, RunFolder
        from train.suites.generate import Generator

        mine = [prompt for prompt in self.prompts if self.shard.holds(prompt)]
        if not mine:
            raise UsageError(f"shard {self.choice.shard} of {len(self.prompts)} prompts holds none")
        folder = RunFolder(path)
        with folder.writing(self.protocol(), self.shard) as lines:
            done = [*folder.samples().values()]
            cost = self.cost(None, done)
            self.talk.say(f"{self.suite.title}, {self.resolved.request.model}, reasoner {self.name}: "
                          f"{cost.left:,} pictures to draw, {cost.rewrites:,} rewrites")  # fmt: skip
            with Interrupt() as interrupt:
                self._stop = interrupt.stop
                Generator(
                    suite=self.suite.name, folder=folder, lines=lines, draw=self._drawer(session, interrupt.stop),
                    images=self.images, seed=self.choice.seed,
                    rewrite=None if self.reasoner is None else self.rewrite(session),
                    expander=None if self.reasoner is None else self.reasoner.plan.expander(),
                    rewrites=self.choice.rewrites, on_refusal=self.choice.on_refusal,
                    on_sample=self._progress(cost),
                ).run(mine)  # fmt: skip
                if interrupt.pressed:  # in the last picture: another run may follow, with an Interrupt of its own
                    raise CancelledError("stopped; what was drawn is kept, and the same command goes on")
        states = folder.states(self.prompts, self.images)
        made = sum(state == MADE for state in states.values())
        self.talk.say(f"{path}: {made:,} of {len(states):,} pictures")
        return {"out": str(path), "reasoner": self.name, "made": made, "wanted": len(states)}

    def rewrite(self, session: Session) -> Callable[[str, int], str]:
        """A prompt's rewriting; the n-th has the reasoner's seed + n."""
        asked = self.reasoner
        assert asked is not None, "a run without a reasoner rewrites nothing"
        listen = say_remarks(self.talk)

        def rewrite(text: str, number: int) -> str:
            own = replace(asked, plan=replace(asked.plan, seed=asked.plan.seed + number))
            return own.prompt_for(session, text, listen)

        return rewrite

    def _drawer(
        self, session: Session, stop: Callable[[], bool] = lambda: False
    ) -> Callable[[str, Wording, int], Generation]:
        def draw(asked: str, wording: Wording, seed: int) -> Generation:
            original = {"original_prompt": asked, "expander": wording.expander} if wording.expander else {}
            prompt = check_prompt(wording.prompt, "prompt")
            request = replace(self.resolved.request, prompt=prompt, seeds=(seed,), **original)
            made = list(session.draw(replace(self.resolved, request=request), on_event=lambda e: None, stop=stop))
            (one,) = made
            if isinstance(one, PictureFailed):
                raise one.error
            return one

        return draw

    def _progress(self, cost: Cost) -> Callable[[Sample], None]:
        import time

        from train.suites.folder import MADE
        from train.suites.plan import duration

        began, count, total = time.monotonic(), 0, cost.left

        def said(sample: Sample) -> None:
            nonlocal count
            count += 1
            if sample.state != MADE:
                self.talk.say(f"{sample.id}, picture {sample.index}: {sample.state}: {sample.reason[:100]}")
            if count == 2 or count % SAID_EVERY == 0 or count == total:
                left = (time.monotonic() - began) / count * (total - count)
                self.talk.say(f"{count:,}/{total:,} pictures{f', about {duration(left)} left' if left > 1 else ''}")
            self.talk.event("picture", id=sample.id, index=sample.index, state=sample.state)

        return said


def _system_prompt(choice: SuiteChoice, suite: Suite, mode: ReasonerMode, found: FoundModel) -> str | None:
    """The prompt that was named; else the suite's own, which the paper has, where a general model answers."""
    if choice.wish.system_prompt is not None:
        return choice.wish.system_prompt if mode is not ReasonerMode.off else None
    general = mode is ReasonerMode.api or (mode is ReasonerMode.local and found.preset.reasoner_prompt == "general")
    return suite.system_prompt if general else None
