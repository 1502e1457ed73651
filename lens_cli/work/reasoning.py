"""The reasoner for commands: from flags to a plan, from a plan to a decision, and what a person sees of it.

Light ring at module scope; the reasoner is imported when a command runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from backend.errors import CancelledError, RefusedError
from backend.events import OnEvent
from backend.settings import Settings
from backend.types import GenerationRequest, ReasonerMode
from lens_cli.terminal.console import Talk
from lens_cli.work.runner import Interrupt

if TYPE_CHECKING:
    from backend.reasoner.answers import Draft
    from backend.reasoner.refine import Decision, LocalSpeaker, RewritePlan, Rewritten, Speaker, Task
    from backend.text.shared_llama import SharedLlama


@dataclass(frozen=True)
class Interruptible:
    """The local speaker with Ctrl-C as a flag. As an exception it could land in one of llama.cpp's callbacks before
    their own `try`, where ctypes prints and drops it."""

    local: LocalSpeaker

    @property
    def identity(self) -> str:
        return self.local.identity

    def ask(self, task: Task) -> Draft:
        """As `LocalSpeaker.ask`. Raises CancelledError on Ctrl-C."""
        with Interrupt("stopping; Ctrl-C again stops at once") as interrupt:
            self.local.stop = lambda: interrupt.pressed
            draft = self.local.ask(task)
        if interrupt.pressed:  # after the last look at the flag
            raise CancelledError("stopped")
        return draft


@dataclass(kw_only=True)
class Rewriting:
    """One command's reasoner. Nothing is opened before the first question, and a known one opens nothing."""

    plan: RewritePlan
    settings: Settings
    model: str  # registry name or path, whose language model answers where the plan is local
    talk: Talk
    flags: tuple[str, ...] = ()  # as typed, to ask the same again
    llama: SharedLlama | None = field(init=False, default=None)  # set by the first local question
    _speaker: Speaker | None = field(init=False, default=None)

    def decide(self, request: str, on_event: OnEvent | None = None) -> Decision:
        """One decision, from the cache or from whoever the plan names; its oddities are said with -v.

        Raises ReplyError and whatever opening a model or reaching an endpoint raises; CancelledError where Ctrl-C
        stopped the local model.
        """
        from backend.cache.store import open_store
        from backend.reasoner.refine import refine

        self._speaker = self._speaker or self._make_speaker()
        cache = open_store("rewrites", self.settings.cache, self.talk.warn)
        if on_event is not None:
            decision = refine(request, self.plan, self._speaker, cache=cache, on_event=on_event)
        else:
            from lens_cli.terminal.progress import Meter

            with Meter(talk=self.talk, total=1) as meter:
                decision = refine(request, self.plan, self._speaker, cache=cache, on_event=meter)
        for note in decision.notes:
            self.talk.detail(f"note: {note}")
        return decision

    def apply(self, request: GenerationRequest) -> GenerationRequest:
        """The request with its rewritten prompt. Raises RefusedError where the reasoner refuses, and as `decide`."""
        from backend.checkpoints.resolve import resolve_model

        resolve_model(request.model)  # a model that is not here is said before a rewrite is waited or paid for
        decision = self._rewritten(request.prompt)
        self.talk.say(f"rewritten{' before' if decision.cached else ''} by {self.who}: {decision.prompt}")
        return replace(request, prompt=decision.prompt, original_prompt=decision.original, expander=decision.expander)

    def prompt_for(self, request: str, on_event: OnEvent | None = None) -> str:
        """The rewritten prompt alone. Raises RefusedError where the reasoner refuses, and as `decide`."""
        return self._rewritten(request, on_event).prompt

    def _rewritten(self, request: str, on_event: OnEvent | None = None) -> Rewritten:
        from backend.reasoner.refine import Refused

        decision = self.decide(request, on_event)
        if isinstance(decision, Refused):
            raise decision.error()
        return decision

    @property
    def off(self) -> bool:
        """Nobody is asked."""
        return self.plan.mode is ReasonerMode.off

    @property
    def who(self) -> str:
        """`nano (local)`, `gpt-x (api)`: the answerer for a person."""
        return f"{self.plan.expander().model} ({self.plan.mode})"

    def close(self) -> None:
        """Give the language model's memory back."""
        if self.llama is not None:
            self.llama.close()

    def _make_speaker(self) -> Speaker:
        from backend.reasoner.refine import LOCAL_CONTEXT, LocalSpeaker, local_gguf

        if self.plan.mode is ReasonerMode.api:
            from backend.reasoner.address import check_address
            from backend.reasoner.endpoint import EndpointSpeaker

            return EndpointSpeaker(check_address(self.settings.reasoner), say=self.talk.detail)
        from backend.cache.store import open_store
        from backend.checkpoints.resolve import resolve_model
        from backend.text.shared_llama import SharedLlama

        files = resolve_model(self.model)
        prefixes = open_store("prefixes", self.settings.cache, self.talk.warn)
        gguf = local_gguf(files.text_encoder, files.name)
        self.llama = SharedLlama(gguf, context=LOCAL_CONTEXT, prefixes=prefixes)
        return Interruptible(LocalSpeaker(self.llama.gguf, files.preset.params.text.template, self.llama))


def make_rewriting(
    settings: Settings,
    model: str | None,
    talk: Talk,
    *,
    mode: ReasonerMode | None,
    system_prompt: str | None,
    insist: bool = False,
) -> Rewriting:
    """The reasoner that flags and settings ask for; its plan may be "off". `model` None: the settings' or the default.

    Raises UsageError.
    """
    from backend.presets import default_name
    from backend.reasoner.refine import make_plan
    from backend.requests import find_preset

    name, preset = find_preset(model or settings.model or default_name())
    plan = make_plan(settings.reasoner, preset, name, mode=mode, system_prompt=system_prompt, insist=insist)
    if plan.mode is ReasonerMode.off and system_prompt is not None:
        talk.warn("--system-prompt is ignored: the reasoner is off")
    flags = ("--reasoner", str(mode)) if mode is not None else ()
    flags += ("--system-prompt", system_prompt) if system_prompt is not None else ()
    return Rewriting(plan=plan, settings=settings, model=name, talk=talk, flags=flags)


def describe_plan(plan: RewritePlan) -> str:
    """One line for --dry-run."""
    if plan.mode is ReasonerMode.off:
        return f"reasoner: off ({plan.why})"
    temperature = "the endpoint's" if plan.temperature is None else f"{plan.temperature:g}"
    return (
        f"reasoner: {plan.mode} ({plan.why}), {plan.expander().model}, system prompt {plan.system.name}, effort "
        f"{plan.effort}, temperature {temperature}, seed {plan.seed}"
    )


def refusal_data(error: RefusedError, plan: RewritePlan) -> dict[str, Any]:
    """What --json says about a refusal."""
    return {"decision": "refuse", "rule": error.rule, "reasoner": plan.data()}
