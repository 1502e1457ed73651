"""A request carried out without a user interface: rewritten or refused, drawn, saved, entered into the history.

Events go out, `stop` comes in. A command, a server, the evaluations and a search are callers of this; whoever only
wants pictures, and has them rewritten and kept by others, asks `backend.engine` itself.

Light ring: torch arrives with the first picture, the reasoner with the first rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from backend.batch.prompt_notes import prompt_notes
from backend.cache.store import Stores, open_store, open_stores
from backend.disk import check_folder
from backend.errors import CancelledError, LensError, NumericsError
from backend.events import (
    DrawingStarted,
    Event,
    Generation,
    Noticed,
    OnEvent,
    PhaseStarted,
    PictureFailed,
    PlanMade,
    PromptRefused,
    PromptRewritten,
    Severity,
    Stop,
)
from backend.paths import history_file
from backend.picture.ledger import Ledger
from backend.picture.outcome import Outcome, come_from, save_picture
from backend.picture.outputs import OutputPlan
from backend.requests import ResolvedRequest
from backend.settings import Settings
from backend.types import Phase, ReasonerMode

if TYPE_CHECKING:
    from backend.checkpoints.resolve import ModelFiles
    from backend.engine import Engine
    from backend.reasoner.refine import Decision, RewritePlan, Speaker


class Session:
    """Carries out one request after another with one engine, which keeps what it has loaded between them."""

    def __init__(self, settings: Settings, *, engine: Engine | None = None, stores: Stores | None = None) -> None:
        """`settings`: of caches and reasoner. `engine`: the caller's, who unloads it; None: one of our own, made when a
        picture or the local reasoner first needs it, and unloaded by `close`. `stores`: of our own engine; None: those
        of the settings."""
        self.settings, self._stores = settings, stores
        self._engine, self._own_engine = engine, engine is None
        self._ledger = Ledger(history_file())
        self._on_event: OnEvent = lambda event: None  # of the call at hand
        self._stop: Stop = lambda: False

    # -------------------------------------------------------------------------------------------------------- requests

    def run(
        self, resolved: ResolvedRequest, output: OutputPlan, *, rewrite: RewritePlan | None = None,
        parent_id: str | None = None, relation: str | None = None, on_event: OnEvent, stop: Stop = lambda: False,
    ) -> Outcome:  # fmt: skip
        """Rewrite, draw and save every picture of a request.

        `rewrite`: who is asked first; None, or off: the prompt is drawn as it stands. `parent_id`: of the record it was
        made from; `relation`: how, for the history (None: rerun, where there is a parent). Where `output` names no
        file, whoever listens writes `PictureSaved.data`. Raises RefusedError where the reasoner refuses,
        ModelMissingError, and what `rewrite` raises; what stops the drawing is in the outcome.
        """
        now = datetime.now()  # one time for all names of a run
        # 1. The prompt. A model that is not here is said before a rewrite is waited or paid for.
        if rewrite is not None and rewrite.mode is not ReasonerMode.off:
            resolved = self.rewritten(resolved, rewrite, on_event, stop)
        request, outcome = resolved.request, Outcome(resolved=resolved)
        on_event(DrawingStarted(request=request))
        # 2. The places. A model that is not here leaves no empty folder behind.
        resolved.need_files()
        if output.template is not None:
            for folder in sorted(output.folders(request, now)):
                check_folder(folder)

        def listen(event: Event) -> None:
            outcome.plan = event.plan if isinstance(event, PlanMade) else outcome.plan
            on_event(event)

        parent_id, relation = come_from(request, parent_id, relation)
        # 3. The pictures, each saved before the next is drawn.
        try:
            for made in self.draw(resolved, on_event=listen, stop=stop):
                if isinstance(made, PictureFailed):
                    outcome.failures.append(made)
                    on_event(made)
                    continue
                saved = save_picture(made, output, now, parent_id)
                if saved.path is None:  # whole once the listener has written it
                    on_event(saved)
                outcome.pictures.append(saved)
                if output.history:
                    self._ledger.enter(saved.record, saved.path, relation, self._warn)
                if saved.path is not None:  # on the disk and in the history, whatever becomes of the listener
                    on_event(saved)
        except LensError as error:
            # A full disk, an unreadable checkpoint, too little memory: the next picture would meet the same.
            outcome.stopped = error
        return outcome

    def draw(
        self, resolved: ResolvedRequest, *, on_event: OnEvent, stop: Stop = lambda: False
    ) -> Iterator[Generation | PictureFailed]:
        """Every picture in order, unsaved. A picture whose numbers fail goes on with the next; every other error is
        raised: see `Engine.draw`, and CancelledError between phases once `stop()` is true."""
        from backend.text.choose_encoder import choose_encoder

        files, request = resolved.need_files(), resolved.request
        choose_encoder(request.encoder, files)  # before torch: what cannot be is said at once
        self._on_event = on_event
        check_loras(resolved, self._warn)
        for note in prompt_notes(request, files):
            self._warn(note)
        for note in files.notes:
            on_event(Noticed(text=note, severity=Severity.note))

        def listen(event: Event) -> None:
            # Loading may take minutes. A finished latent is still decoded.
            if isinstance(event, PhaseStarted) and event.phase is not Phase.decode and stop():
                raise CancelledError("stopped")
            on_event(event)

        done = 0
        while done < len(request.seeds):
            try:
                for generation in self.engine.draw(resolved, first=done, on_event=listen, stop=stop):
                    yield generation
                    done += 1
                assert done == len(request.seeds), f"the engine made {done} of {len(request.seeds)} pictures"
            except NumericsError as error:
                yield PictureFailed(index=done, seed=request.seeds[done], error=error)
                done += 1

    # -------------------------------------------------------------------------------------------------------- rewrites

    def rewrite(
        self, request: str, plan: RewritePlan, files: ModelFiles | None, *, on_event: OnEvent,
        stop: Stop = lambda: False,
    ) -> Decision:  # fmt: skip
        """One decision, from the cache or from whoever the plan names; its oddities are noticed in detail.

        `files`: of the model whose language model answers where the plan is local. Raises ReplyError and whatever
        opening a model or reaching an endpoint raises; CancelledError once `stop()` is true.
        """
        from backend.reasoner.refine import Refused, refine

        self._on_event = on_event
        cache = open_store("rewrites", self.settings.cache, self._warn)
        decision = refine(request, plan, self.speaker(plan, files, stop), cache=cache, on_event=on_event)
        if stop():  # after the speaker's last look
            raise CancelledError("stopped")
        for note in decision.notes:
            self._detail(f"note: {note}")
        common: dict[str, Any] = {
            "original": decision.original, "expander": decision.expander, "cached": decision.cached
        }  # fmt: skip
        if isinstance(decision, Refused):
            on_event(PromptRefused(rule=decision.rule, **common))
        else:
            on_event(PromptRewritten(prompt=decision.prompt, **common))
        return decision

    def rewritten(self, resolved: ResolvedRequest, plan: RewritePlan, on_event: OnEvent, stop: Stop) -> ResolvedRequest:
        """The request with its rewritten prompt. Raises RefusedError, and as `rewrite`."""
        from backend.reasoner.refine import Refused

        files = resolved.need_files()
        decision = self.rewrite(resolved.request.prompt, plan, files, on_event=on_event, stop=stop)
        if isinstance(decision, Refused):
            raise decision.error()
        drawn = replace(
            resolved.request, prompt=decision.prompt, original_prompt=decision.original, expander=decision.expander
        )
        return replace(resolved, request=drawn)

    def speaker(self, plan: RewritePlan, files: ModelFiles | None, stop: Stop) -> Speaker:
        """Who answers under a plan; nothing is opened or asked yet."""
        from backend.reasoner.refine import LOCAL_CONTEXT, LocalSpeaker, local_gguf

        if plan.mode is ReasonerMode.api:
            from backend.reasoner.address import reasoner_address
            from backend.reasoner.endpoint import EndpointSpeaker

            return EndpointSpeaker(reasoner_address(self.settings.reasoner), say=self._detail)
        assert files is not None, "a local plan has a model"
        gguf = local_gguf(files.text_encoder, files.name)
        template = files.preset.params.text.template
        return LocalSpeaker(gguf, template, lambda: self.engine.language_model(gguf, LOCAL_CONTEXT), stop)

    # ---------------------------------------------------------------------------------------------------------- memory

    @property
    def engine(self) -> Engine:
        """The engine that draws, made now where there is none."""
        if self._engine is None:
            from backend.engine import Engine  # torch: 1.4 s, and this is the first moment that needs it

            stores = open_stores(self.settings.cache, self._warn) if self._stores is None else self._stores
            self._engine = Engine(stores=stores)
        return self._engine

    def close(self) -> None:
        """Give back the memory of our own engine, and let go of the history."""
        self._ledger.close()
        if self._own_engine and self._engine is not None:
            self._engine.unload()
            self._engine = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _warn(self, text: str) -> None:
        self._on_event(Noticed(text=text))

    def _detail(self, text: str) -> None:
        self._on_event(Noticed(text=text, severity=Severity.detail))


def check_loras(resolved: ResolvedRequest, warn: Callable[[str], None]) -> None:
    """Say what of the LoRAs does not fit the model, from their headers alone. Raises CheckpointError or UsageError."""
    request, files = resolved.request, resolved.need_files()
    if request.loras:
        from backend.checkpoints.packing_plan import plan_quant
        from backend.lora.names import decide_modes

        rounds = plan_quant(files, request.quant).approximation is not None  # a packing that is kept rounds nothing
        decide_modes(request.loras, files.preset.params.dit, quantised=rounds, warn=warn)
