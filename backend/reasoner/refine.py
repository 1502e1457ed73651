"""The reasoner: a brief request -> one prompt the transformer was trained to read, or a refusal that names its rule.

`make_plan` settles who is asked and with which instructions, before anything is opened; `refine` asks, checks and keeps
the answer. Who answers is a `Speaker`: the model's own language model (`LocalSpeaker`) or an OpenAI-compatible endpoint
(`backend.reasoner.endpoint`). Nothing falls back to the raw request: an answer that cannot be used is an error.

With the reasoner off nothing is refused either: a text rule is no safety system, and there is no filter on pictures.

Source: the paper's reasoner (section on inference) and its policy (Appendix F), in our own words: `prompts/`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import prompts
from backend.errors import RefusedError, ReplyError, UsageError
from backend.events import OnEvent, PhaseDone, PhaseStarted, Stop
from backend.memory.exhausted import process_peak_bytes
from backend.paths import prompts_dir
from backend.presets import Preset
from backend.reasoner import answers
from backend.reasoner.adapter import adapter_sha256, fitting_adapter
from backend.reasoner.address import reasoner_address
from backend.reasoner.answers import Draft
from backend.settings import ReasonerSettings
from backend.text.choose_encoder import is_one_gguf
from backend.types import Expander, Phase, ReasonerMode
from prompts import SystemPrompt

if TYPE_CHECKING:
    from backend.cache.store import Store
    from backend.checkpoints.resolve import ModelFiles
    from backend.params import TemplateParams
    from backend.text.llama import LlamaModel

CACHE_VERSION = 1  # raised when the same question would be answered, or read, differently by this code
# Tokens the local model can hold: instructions and policy about 2,000, the longest request, thought and answer.
LOCAL_CONTEXT = 8192


@dataclass(frozen=True, kw_only=True)
class RewritePlan:
    """Everything about a rewrite but the request. `mode` is never auto."""

    mode: ReasonerMode
    why: str  # why this mode, in a few words
    model: str  # who answers: a registry name or path (local), the model's name at the endpoint (api)
    system: SystemPrompt
    contract: str  # decision or complete; see `prompts`
    effort: str
    temperature: float | None  # None: the endpoint's own
    seed: int
    think_tokens: int
    answer_tokens: int
    max_tokens: int
    adapter: str | None = None  # SHA-256 of the updates of the local model's weights; None: the model as it is

    def instructions(self, form: str) -> str:
        """The whole text that is sent as instructions; `form` of the answer: json or plain."""
        return prompts.compose(self.system, self.contract, form)

    def expander(self, left_out: Collection[str] = ()) -> Expander:
        """What a picture's record says about the rewrite; `left_out` are fields that had no say in it."""
        return Expander(
            kind=str(self.mode),
            model=Path(self.model).name if self.mode is ReasonerMode.local else self.model,
            system_prompt=self.system.name,
            instructions_sha256=hashlib.sha256(self.instructions("json").encode()).hexdigest(),
            effort=self.effort,
            temperature=None if "temperature" in left_out else self.temperature,
            seed=None if "seed" in left_out else self.seed,
            adapter=self.adapter,
        )

    def data(self) -> dict[str, Any]:
        """The plan for JSON."""
        return {
            "mode": str(self.mode),
            "why": self.why,
            **({} if self.mode is ReasonerMode.off else {"contract": self.contract, **asdict(self.expander())}),
        }


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question to a speaker."""

    request: str
    plan: RewritePlan
    reminder: str = ""  # a sentence after the instructions, where a first answer fell short

    def instructions(self, form: str) -> str:
        text = self.plan.instructions(form)
        if not self.reminder:
            return text
        blank = " " if self.plan.contract == "complete" else "\n\n"
        return f"{text}{blank}{self.reminder}"


class Speaker(Protocol):
    """Who answers."""

    @property
    def identity(self) -> str:
        """All that decides its answers beside the task; known without opening or asking anything."""
        ...

    def ask(self, task: Task) -> Draft:
        """One answer. Raises ReplyError where it cannot be used, and what opening or reaching the model raises."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    prompt: str  # what shall be drawn
    original: str  # the request
    expander: Expander
    cached: bool  # True: nobody was asked
    notes: tuple[str, ...] = ()  # what was odd about the answer


@dataclass(frozen=True, kw_only=True)
class Refused:
    rule: str  # a name of the policy, or answers.MODEL_REFUSAL
    original: str
    expander: Expander
    cached: bool
    notes: tuple[str, ...] = ()

    def error(self) -> RefusedError:
        """The refusal as the error that ends a command with exit code 7."""
        if self.rule == answers.MODEL_REFUSAL:
            return RefusedError(
                "the reasoner's model declined the request without naming a rule",
                hint="word it otherwise, or ask another model; --reasoner off draws the request as it stands",
                rule=self.rule,
            )
        text = next(rule.text for rule in prompts.rules() if rule.name == self.rule)
        allowed = " ".join(text.partition("Not this:")[2].split())
        return RefusedError(
            f"the request is refused by the rule {self.rule!r}",
            hint=f"allowed, for instance: {allowed}",
            rule=self.rule,
        )


Decision = Rewritten | Refused


# --------------------------------------------------------------------------------------------------------------- plan


def choose_mode(
    settings: ReasonerSettings, preset: Preset, typed: ReasonerMode | None = None
) -> tuple[ReasonerMode, str]:
    """(mode, why) with auto resolved: the configured endpoint where there is one, else the model's own default."""
    wanted = typed or settings.mode
    if wanted is not ReasonerMode.auto:
        return wanted, "asked for"
    if settings.base_url and settings.model:
        return ReasonerMode.api, "an endpoint is configured"
    if preset.reasoner_default is ReasonerMode.local:
        return ReasonerMode.local, f"no endpoint is configured, and {preset.name}'s own helps"
    return ReasonerMode.off, f"no endpoint is configured, and {preset.name} draws requests as they are"


def make_plan(
    settings: ReasonerSettings,
    preset: Preset,
    model: str,
    *,
    files: ModelFiles | None,
    mode: ReasonerMode | None = None,
    system_prompt: str | None = None,
    insist: bool = False,
) -> RewritePlan:
    """Who is asked and with what. Opens nothing.

    `files`: of the model; an adapter beside its language model is part of the plan. `mode` and `system_prompt` are what
    was typed, before the settings. With `insist` (a command that does nothing but rewrite) auto never ends in off.
    Raises UsageError.
    """
    chosen, why = choose_mode(settings, preset, mode)
    if insist and chosen is ReasonerMode.off and (mode or settings.mode) is ReasonerMode.auto:
        chosen, why = ReasonerMode.local, "no endpoint is configured"
    local = chosen is ReasonerMode.local
    if chosen is ReasonerMode.api:
        reasoner_address(settings)
    default = preset.reasoner_prompt if local else "general"
    try:
        # Where nobody is asked, a setting that could not be used is in nobody's way; what was typed still is looked at.
        wanted = system_prompt or (settings.system_prompt if chosen is not ReasonerMode.off else None)
        system = prompts.load(wanted or default, prompts_dir())
        # A plain file does not say whether policy and form are in it: it is taken as the model's own prompt is.
        contract = system.contract or prompts.load(default).contract or "decision"
    except prompts.PromptError as error:
        where = "the setting reasoner.system_prompt: " if settings.system_prompt and not system_prompt else ""
        raise UsageError(f"{where}{error}", hint=error.hint) from error
    if chosen is not ReasonerMode.off:
        _check_settings(settings, local)
    temperature = settings.temperature
    return RewritePlan(
        mode=chosen,
        why=why,
        model=(settings.model or "") if chosen is ReasonerMode.api else model,
        system=system,
        contract=contract,
        effort=str(settings.effort),
        temperature=preset.reasoner_temperature if temperature is None and local else temperature,
        seed=settings.seed,
        think_tokens=settings.think_tokens,
        answer_tokens=settings.answer_tokens,
        max_tokens=settings.max_tokens,
        adapter=adapter_sha256(files.text_encoder) if local and settings.adapter and files is not None else None,
    )


def _check_settings(settings: ReasonerSettings, local: bool) -> None:
    """Raises UsageError for numbers that cannot be meant."""
    temperature = settings.temperature
    if temperature is not None and not 0 <= temperature <= 2:
        raise UsageError(f"the reasoner's temperature {temperature:g} is outside 0..2", hint="0: the likeliest words")
    for name in ("think_tokens", "answer_tokens", "max_tokens"):
        if not 1 <= getattr(settings, name) <= 100_000:
            raise UsageError(f"reasoner.{name} = {getattr(settings, name)} is outside 1..100,000")
    if local and settings.think_tokens + settings.answer_tokens > LOCAL_CONTEXT // 2:
        raise UsageError(
            f"reasoner.think_tokens and answer_tokens together pass {LOCAL_CONTEXT // 2:,}",
            hint="the other half of the local model's context holds the instructions and the request",
        )


# ------------------------------------------------------------------------------------------------------------- refine


def refine(
    request: str,
    plan: RewritePlan,
    speaker: Speaker,
    *,
    cache: Store | None = None,
    on_event: OnEvent = lambda event: None,
) -> Decision:
    """Rewrite `request`, or refuse it. The same question to the same speaker is asked once and then read from `cache`.

    Quoted words of the request must stand letter by letter in the rewrite: a rewrite without them is asked for once
    more, with a reminder, and is then an error, for a picture with other words is not what was asked for.
    Raises ReplyError and what the speaker raises.
    """
    key = cache_key(request, plan, speaker.identity)
    draft = _read(cache, key)
    cached = draft is not None
    if draft is None:
        with _phase(on_event):
            draft = _ask(request, plan, speaker)
        if cache is not None and draft.rule != answers.MODEL_REFUSAL:  # a model's mood; a rule of the policy is kept
            cache.write(key, json.dumps({"v": CACHE_VERSION, **asdict(draft)}).encode())
    common: dict[str, Any] = {
        "original": request,
        "expander": plan.expander(draft.left_out),
        "cached": cached,
        "notes": () if cached else draft.notes,
    }
    if draft.decision == "refuse":
        return Refused(rule=draft.rule or answers.MODEL_REFUSAL, **common)
    return Rewritten(prompt=draft.prompt, **common)


def _ask(request: str, plan: RewritePlan, speaker: Speaker) -> Draft:
    task = Task(request=request, plan=plan)
    draft = speaker.ask(task)
    if draft.decision == "refuse" or not (missing := answers.missing_quotes(request, draft.prompt)):
        return draft
    words = ", ".join(f'"{words}"' for words in missing)
    # Another seed, or the same words would come again; at temperature 0 the reminder alone has to change them.
    again = replace(
        task, plan=replace(plan, seed=plan.seed + 1), reminder=f"Keep these quoted words letter by letter: {words}."
    )
    draft = speaker.ask(again)
    if draft.decision == "refuse" or not (missing := answers.missing_quotes(request, draft.prompt)):
        return replace(draft, notes=(*draft.notes, "the first rewrite had lost quoted words; this is the second"))
    raise ReplyError(
        f"the reasoner twice lost the quoted words {', '.join(repr(words) for words in missing)}",
        hint="write the prompt yourself with --reasoner off, or edit the rewrite: lens refine --edit",
    )


def cache_key(request: str, plan: RewritePlan, identity: str) -> str:
    """SHA-256 of everything that determines the answer."""
    parts = {
        "version": CACHE_VERSION,
        "speaker": identity,
        "instructions": [plan.instructions("json"), plan.instructions("plain")],
        "request": request,
        "effort": plan.effort,
        "temperature": plan.temperature,
        "seed": plan.seed,
        "budget": [plan.think_tokens, plan.answer_tokens, plan.max_tokens],
        "adapter": plan.adapter,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(cache: Store | None, key: str) -> Draft | None:
    """A kept answer. One that is damaged is said, dropped and asked for again."""
    data = cache.read(key) if cache is not None else None
    if cache is None or data is None:
        return None
    try:
        found = json.loads(data)
        version = found.pop("v")
        notes, left_out = tuple(found.pop("notes")), tuple(found.pop("left_out", ()))
        draft = Draft(**found, notes=notes, left_out=left_out)
        whole = draft.prompt if draft.decision == "rewrite" else draft.rule in prompts.rule_names()
        if version != CACHE_VERSION or not whole:
            raise ValueError("it is no decision")
        return draft
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        cache.drop(key, str(error))
        return None


@contextmanager
def _phase(on_event: OnEvent) -> Generator[None]:
    """Report the rewriting as a phase."""
    on_event(PhaseStarted(phase=Phase.rewrite))
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    on_event(PhaseDone(phase=Phase.rewrite, seconds=seconds, peak_bytes=process_peak_bytes()))


# -------------------------------------------------------------------------------------------------------------- local


def local_gguf(files: tuple[Path, ...], model: str) -> Path:
    """The one GGUF file of a model's language model. Raises UsageError where it has none: only that can write."""
    if is_one_gguf(files):
        return files[0]
    found = files[0].name if files else "none"
    raise UsageError(
        f"the local reasoner of {model} needs its language model as one GGUF file; found {found}",
        hint="put a gpt-oss GGUF in its place, use --reasoner api with an endpoint, or --reasoner off",
    )


class LocalSpeaker:
    """The model's own language model. `open_model` gives the opened GGUF and keeps it: the same one may encode text
    afterwards, so it is not closed here."""

    def __init__(
        self,
        gguf: Path,
        template: TemplateParams,
        open_model: Callable[[], LlamaModel],
        stop: Stop = lambda: False,
    ) -> None:
        self.gguf, self.template, self.open_model, self.stop = gguf, template, open_model, stop

    @property
    def identity(self) -> str:
        from importlib.metadata import version

        from backend.checkpoints.identity import known_sha256

        return f"gguf {known_sha256(self.gguf)} template {self.template} llama-cpp-python {version('llama-cpp-python')}"

    def ask(self, task: Task) -> Draft:
        from backend.text.harmony import conversation

        plan = task.plan
        model = self.open_model()
        ids = conversation(model.tokenizer, self.template, task.instructions("json"), task.request, effort=plan.effort)
        assert plan.temperature is not None, "a local plan has one"
        reply = model.answer(
            ids,
            schema=answers.schema(),
            think_tokens=plan.think_tokens,
            answer_tokens=plan.answer_tokens,
            temperature=plan.temperature,
            seed=plan.seed,
            stop=self.stop,
            adapter=fitting_adapter(self.gguf, plan.adapter) if plan.adapter is not None else None,
        )
        if not reply.finished:
            raise ReplyError(
                f"the reasoner's answer was cut after {plan.answer_tokens:,} tokens",
                hint="raise the setting reasoner.answer_tokens, or shorten the request",
            )
        return answers.read_json(reply.text)
