"""The reasoner for commands: from flags to a plan, and one rewrite as a person waits for it.

Light ring at module scope; the reasoner is imported when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.errors import RefusedError
from backend.events import OnEvent
from backend.requests import FoundModel, ResolvedRequest
from backend.settings import Settings
from backend.types import ReasonerMode
from lens_cli.terminal.console import Talk
from lens_cli.work.interrupt import WRITING, Interrupt

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles
    from backend.reasoner.refine import Decision, RewritePlan
    from backend.server.remote import Draws


@dataclass(frozen=True, kw_only=True)
class AskedReasoner:
    """Who rewrites a command's requests."""

    plan: RewritePlan
    need_files: Callable[[], ModelFiles]  # of the model whose language model answers where the plan is local
    flags: tuple[str, ...]  # as typed, to ask the same again

    @property
    def off(self) -> bool:
        """Whether nobody is asked."""
        return self.plan.mode is ReasonerMode.off

    @property
    def who(self) -> str:
        """`nano (local)`, `gpt-x (api)`: the answerer for a person."""
        return f"{self.plan.expander().model} ({self.plan.mode})"

    def decide(self, session: Draws, request: str, on_event: OnEvent) -> Decision:
        """One decision. Raises what `Session.rewrite` does, ModelMissingError; CancelledError on Ctrl-C."""
        if self.plan.mode is not ReasonerMode.local:
            return session.rewrite(request, self.plan, None, on_event=on_event)
        # As a flag: an exception could land in one of llama.cpp's callbacks before their own `try`, where ctypes prints
        # and drops it.
        with Interrupt(WRITING) as interrupt:
            return session.rewrite(request, self.plan, self.need_files(), on_event=on_event, stop=interrupt.stop)

    def prompt_for(self, session: Draws, request: str, on_event: OnEvent) -> str:
        """The rewritten prompt alone. Raises RefusedError where the reasoner refuses, and as `decide`."""
        from backend.reasoner.refine import Refused

        decision = self.decide(session, request, on_event)
        if isinstance(decision, Refused):
            raise decision.error()
        return decision.prompt


def ask_reasoner(
    settings: Settings,
    model: FoundModel | ResolvedRequest,
    talk: Talk,
    *,
    mode: ReasonerMode | None,
    system_prompt: str | None,
    insist: bool = False,
) -> AskedReasoner:
    """The reasoner that flags and settings ask for; its plan may be "off". Raises UsageError."""
    from backend.reasoner.refine import make_plan

    name = model.name if isinstance(model, FoundModel) else model.request.model
    plan = make_plan(
        settings.reasoner, model.preset, name, mode=mode, system_prompt=system_prompt, insist=insist, files=model.files
    )
    if plan.mode is ReasonerMode.off and system_prompt is not None:
        talk.warn("--system-prompt is ignored: the reasoner is off")
    flags = ("--reasoner", str(mode)) if mode is not None else ()
    flags += ("--system-prompt", system_prompt) if system_prompt is not None else ()
    return AskedReasoner(plan=plan, need_files=model.need_files, flags=flags)


def describe_plan(plan: RewritePlan) -> str:
    """One line for --dry-run."""
    if plan.mode is ReasonerMode.off:
        return f"reasoner: off ({plan.why})"
    temperature = "the endpoint's" if plan.temperature is None else f"{plan.temperature:g}"
    return (
        f"reasoner: {plan.mode} ({plan.why}), {plan.expander().model}, system prompt {plan.system.name}, effort "
        f"{plan.effort}, temperature {temperature}, seed {plan.seed}"
        + (f", adapter {plan.adapter[:12]}…" if plan.adapter is not None else "")
    )


def refusal_data(error: RefusedError, plan: RewritePlan) -> dict[str, Any]:
    """What --json says about a refusal."""
    return {"decision": "refuse", "rule": error.rule, "reasoner": plan.data()}
