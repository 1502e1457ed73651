"""What `lens eval claims` does: draw each arm of the paper's claims with Lens-Nano, compare, write the table.

Light ring at module scope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.cache.store import Stores
from backend.disk import make_folder, write_atomic
from backend.errors import CancelledError, LensError, UsageError
from backend.events import PictureFailed
from backend.requests import build_request, check_prompt, find_model
from backend.session import Session
from backend.settings import load
from backend.types import ReasonerMode
from backend.wish import NO_LORA, Wish
from lens_cli.terminal.console import Talk
from lens_cli.terminal.progress import say_remarks
from lens_cli.work.interrupt import Interrupt
from lens_cli.work.reasoner import AskedReasoner, ask_reasoner

if TYPE_CHECKING:
    from PIL import Image

    from backend.requests import ResolvedRequest
    from train.evals.nano import EvalReport, EvalResult
    from train.evals.nano_prompts import NanoPrompt
    from train.suites.claims import Arm, Claim, Finding

SECONDS = 2.5  # of a picture and its verdict at 256x256, 20 steps, two quiet cores: 2.3 (docs/measurements.md), 0.2


@dataclass(frozen=True, kw_only=True)
class ClaimsChoice:
    """What was typed."""

    out: Path  # folder of the arms' pictures
    to: Path | None  # the table; None: evidence.md in `out`
    limit: int | None  # prompts; None: all 350
    claims: tuple[str, ...]  # empty: all
    given: tuple[str, ...]  # ROLE=PATH|NAME
    seed: int
    dry_run: bool

    @property
    def table(self) -> Path:
        return self.to or self.out / "evidence.md"


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """What an arm is drawn with."""

    model: str
    lora: str | None = None
    rl_strength: float | None = None  # of a model that is a base with an adapter; None: as it ships


@dataclass(frozen=True, kw_only=True)
class _Way:
    """All that makes the pictures of an arm: arms of one way are drawn once."""

    weights: _Weights
    prompt: str | None
    steps: int | None
    size: tuple[int, int] | None
    requests: bool


class _Absent(Exception):
    """An arm's weights or prompt are not here: what, and the name that was looked for."""

    def __init__(self, what: str, name: str) -> None:
        super().__init__(what, name)
        self.what, self.name = what, name


def check_claims(choice: ClaimsChoice, talk: Talk) -> None:
    """Draw what is missing and write the table after every claim, with the rows that it had and that still hold.

    Raises UsageError, FileError; CancelledError on Ctrl-C.
    """
    from train.suites.claims import CLAIMS, UNMEASURED, Finding, arms_of, finding, recorded_finding
    from train.suites.evidence import Row, evidence, read_rows, still_true, write_rows

    claims = _chosen(choice.claims)
    given = _given(choice.given)
    found: dict[str, Arm] = {}  # by an arm's name, the arm that is drawn: the first of all that is drawn so
    absent: dict[str, _Absent] = {}
    firsts: dict[_Way, Arm] = {}
    for arm in arms_of(CLAIMS):
        try:
            found[arm.name] = firsts.setdefault(_way(arm, given), arm)
        except _Absent as error:
            absent[arm.name] = error
    needed = [(c, c.before, c.after) for c in claims if c.before and c.after and not _gone(c, absent)]
    pictures = {
        (found[arm.name].name, prompt.id, index)
        for claim, *arms in needed for arm in arms
        for prompt in _prompts(claim, arm, choice.limit) for index in range(claim.images)
    }  # fmt: skip
    if pictures:
        ways = len({name for name, *_ in pictures})
        talk.say(f"{len(pictures):,} pictures, drawn in {ways} ways: about {_hours(len(pictures) * SECONDS)} on two "
                 "quiet cores, less what is there")  # fmt: skip
    if choice.dry_run:
        for claim in claims:
            talk.data(f"{claim.id:<12}{_state(claim, absent)}")
        talk.result({"claims": [{"claim": c.id, "state": _state(c, absent)} for c in claims]})
        return
    at = choice.table.with_suffix(".json")
    rows, lacking = read_rows(at), {claim.id: _gone(claim, absent) for claim in CLAIMS}
    found_now = dict[str, Finding]()
    drawn_now = dict[str, Any]()
    with Session(load(talk.warn), stores=Stores()) as session:
        for claim in claims:
            if claim.recorded is not None:
                found_now[claim.id] = recorded_finding(claim)
            elif lacking[claim.id]:
                found_now[claim.id] = Finding(claim=claim, verdict=UNMEASURED, why=lacking[claim.id])
            else:
                assert claim.before is not None and claim.after is not None, "a claim has arms or a record"
                arms = dict[str, Any]()
                before, after = (
                    _Drawing(choice, claim, found[arm.name], given, talk).report(session, arms)
                    for arm in (claim.before, claim.after)
                )
                drawn_now |= arms
                found_now[claim.id] = finding(claim, before, after)
                rows = still_true(rows, drawn_now) | {claim.id: Row(finding=found_now[claim.id], arms=arms)}
            talk.data(f"{claim.id:<12}{_line(found_now[claim.id])}")
            make_folder(choice.table.absolute().parent)
            write_rows(at, rows)
            write_atomic(choice.table, evidence(rows, lacking).encode())
    talk.say(f"table: {choice.table}")
    findings = [one.data() for one in found_now.values()]
    talk.result({"claims": findings, "table": str(choice.table), "about": drawn_now})


def _chosen(ids: Sequence[str]) -> list[Claim]:
    from train.suites.claims import CLAIMS

    known = {claim.id: claim for claim in CLAIMS}
    if unknown := [name for name in ids if name not in known]:
        raise UsageError(f"no claim is called {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
    return [known[name] for name in known if not ids or name in ids]


def _prompts(claim: Claim, arm: Arm, limit: int | None) -> tuple[NanoPrompt, ...]:
    """What a claim draws in one of its arms: `limit` of the arm's set, of the claim's kinds, or all."""
    from train.evals import nano_prompts, nano_requests

    of = nano_requests.requests if arm.requests else nano_prompts.prompts
    whole = of(claim.kinds)
    return whole if limit is None or limit >= len(whole) else of(claim.kinds, limit)


def _given(texts: Sequence[str]) -> dict[str, str]:
    from train.suites.claims import ROLES

    given = dict[str, str]()
    for text in texts:
        role, sign, value = text.partition("=")
        if not sign or role not in ROLES or not value:
            raise UsageError(f"--with {text!r} is no ROLE=PATH", hint=f"the roles are {', '.join(ROLES)}")
        given[role] = value
    return given


def _way(arm: Arm, given: Mapping[str, str]) -> _Way:
    """How an arm is drawn. Raises _Absent where something of it is not here, UsageError."""
    return _Way(
        weights=_weights(arm, given), prompt=_prompt(arm, given), steps=arm.steps, size=arm.size, requests=arm.requests
    )


def _weights(arm: Arm, given: Mapping[str, str]) -> _Weights:
    """By looking: what was named, a preset whose files are here, or a LoRA of that name. Raises _Absent, UsageError."""
    from backend import presets
    from backend.paths import loras_dir

    named = given.get(arm.role)
    if named is not None:
        lora = Path(named).suffix == ".safetensors"
        return _Weights(model=_base(given), lora=named) if lora else _Weights(model=named)
    name = "nano" if arm.role == "nano" else f"nano-{arm.role}"
    if name in presets.names():
        model = find_model(name)
        if model.files is None:
            raise _Absent("no weights", name)
        return _Weights(model=name)
    lora = loras_dir() / f"{name}.safetensors"
    if lora.is_file():
        return _Weights(model=_base(given), lora=str(lora))
    shipped = find_model("nano").files
    tuned = shipped is not None and shipped.adjustable  # the model that ships is a base with a reward's adapter
    if arm.role == "rl" and (tuned or "nano-base" in presets.names()):
        return _Weights(model="nano")
    if arm.role == "base" and tuned:
        return _Weights(model="nano", rl_strength=0.0)
    raise _Absent("no weights", name)


def _base(given: Mapping[str, str]) -> str:
    """What a reward's LoRA is put on: the base model where there is one, else the model as it ships."""
    from backend import presets

    return given.get("base") or ("nano-base" if "nano-base" in presets.names() else "nano")


def _prompt(arm: Arm, given: Mapping[str, str]) -> str | None:
    """The arm's system prompt by name or path; None: it has no reasoner. Raises _Absent."""
    import prompts

    if arm.prompt is None:
        return None
    usual = {"prompt": "nano", "first-prompt": "nano-first", "searched-prompt": "nano-searched"}
    name = given.get(arm.prompt) or usual[arm.prompt]
    try:
        prompts.load(name)
    except prompts.PromptError as error:
        if arm.prompt in given:
            raise UsageError(str(error), hint=error.hint) from error
        raise _Absent("no system prompt", name) from None
    return name


def _gone(claim: Claim, absent: Mapping[str, _Absent]) -> str:
    """What a claim lacks: "no weights: nano-base, nano-rl"; "" where it lacks nothing."""
    arms = [arm.name for arm in (claim.before, claim.after) if arm is not None and arm.name in absent]
    if not arms:
        return ""
    return f"{absent[arms[0]].what}: {', '.join(dict.fromkeys(absent[arm].name for arm in arms))}"


def _state(claim: Claim, absent: Mapping[str, _Absent]) -> str:
    if claim.recorded is not None:
        return "measured before"
    gone = _gone(claim, absent)
    return f"not measured: {gone}" if gone else "to be measured"


def _line(one: Finding) -> str:
    if one.difference is None or one.interval is None:
        return f"{one.verdict}: {one.why}"
    scores = "" if one.before is None or one.after is None else f"{one.before:.3f} -> {one.after:.3f}, "
    low, high = one.interval
    return f"{one.verdict}: {scores}{one.difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _hours(seconds: float) -> str:
    from train.suites.plan import duration

    return duration(seconds)


@dataclass(frozen=True)
class _Drawing:
    """What a claim needs of one arm, drawn and judged in a folder of the arm's."""

    choice: ClaimsChoice
    claim: Claim
    arm: Arm
    given: Mapping[str, str]
    talk: Talk

    def report(self, session: Session, about: dict[str, Any]) -> EvalReport:
        """Draw what is missing. Raises CancelledError on Ctrl-C, and what drawing raises."""
        from train.evals.nano import EvalFolder, evaluate

        chosen = _prompts(self.claim, self.arm, self.choice.limit)
        resolved, reasoner, settings = self.settle(chosen[0].brief)
        about[self.arm.name] = settings
        folder = EvalFolder(self.choice.out / self.arm.name)
        done = folder.open(settings)
        wanted = {(prompt.id, index) for prompt in chosen for index in range(self.claim.images)}
        whole, count = len(wanted), sum(result.key in wanted for result in done)
        if count < whole:
            self.talk.say(f"{self.arm.name}: {whole - count} of {whole} pictures to draw")

        def on_result(result: EvalResult, picture: Image.Image | None) -> None:
            nonlocal count
            folder.add(result, picture)
            count += 1
            if count % 50 == 0 or count == whole:
                self.talk.say(f"{self.arm.name}: {count}/{whole}")
            if interrupt.pressed:
                raise CancelledError("stopped; what was drawn is kept, and the same command goes on")

        def generate(prompt: str, seed: int) -> Image.Image:
            request = replace(resolved.request, prompt=check_prompt(prompt, "prompt"), seeds=(seed,))
            (made,) = session.draw(replace(resolved, request=request), on_event=lambda event: None)
            if isinstance(made, PictureFailed):
                raise made.error
            return made.image

        with Interrupt("stopping after this picture; Ctrl-C again stops at once") as interrupt:
            listen = say_remarks(self.talk)
            return evaluate(
                generate, chosen, images_per_prompt=self.claim.images, seed=self.choice.seed, done=done,
                rewrite=None if reasoner is None else lambda text: reasoner.prompt_for(session, text, listen),
                on_result=on_result,
            )  # fmt: skip

    def settle(self, first: str) -> tuple[ResolvedRequest, AskedReasoner | None, dict[str, Any]]:
        """(the request of every picture, who rewrites, what makes results comparable). Raises UsageError."""
        from backend.checkpoints.identity import identify_model
        from train.evals import nano_prompts, nano_requests
        from train.evals.verifier.verify import VERSION

        fingerprint = (nano_requests if self.arm.requests else nano_prompts).fingerprint
        settings, arm, weights = load(self.talk.warn), self.arm, _weights(self.arm, self.given)
        size = None if arm.size is None else f"{arm.size[0]}x{arm.size[1]}"
        found = find_model(weights.model)
        wish = Wish(
            prompt=first, seeds=(str(self.choice.seed),), steps=arm.steps, size=size,
            ar=None if size else "1:1", loras=(weights.lora or NO_LORA,), rl_strength=weights.rl_strength,
        )  # fmt: skip
        resolved = build_request(wish, settings, self.talk.warn, found=found)
        system = _prompt(arm, self.given)
        asked = None
        if system is not None:
            asked = ask_reasoner(settings, found, self.talk, mode=ReasonerMode.local, system_prompt=system)
        request = resolved.request
        try:
            identity = identify_model(resolved.need_files()).sha256
        except OSError as error:
            raise LensError(f"cannot read the weights of {weights.model}: {error}") from error
        said = {key: value for key, value in asked.plan.data().items() if key != "why"} if asked is not None else "off"
        return resolved, asked, {
            "arm": arm.name, "model": request.model, "weights": identity, "fingerprint": fingerprint(),
            "verifier": VERSION, "dtype": str(request.dtype), "steps": request.steps, "guidance": request.guidance,
            "width": request.width, "height": request.height,
            "loras": [[use.sha256, use.scale] for use in request.loras], "rl_strength": request.rl_strength,
            "seed": self.choice.seed, "reasoner": said,
        }  # fmt: skip
