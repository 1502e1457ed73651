"""What `gen` and `rerun` do with a complete request: show the plan, or carry it out and say how it goes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import typer

from backend.errors import FileError, RefusedError, os_reason
from backend.events import DrawingStarted, Event, PhaseStarted, PictureFailed, PictureSaved, PromptRewritten
from backend.picture.outcome import Outcome
from backend.picture.outputs import OutputPlan
from backend.reasoner.refine import choose_mode
from backend.requests import ResolvedRequest
from backend.settings import Settings
from backend.types import GenerationRequest, Phase, ReasonerMode
from lens_cli.terminal.console import Talk, write_bytes
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.show import show, wanted
from lens_cli.terminal.viewer import view
from lens_cli.terminal.wording import arithmetic, command_line, describe
from lens_cli.work.backend import open_session
from lens_cli.work.interrupt import DRAWING, WRITING, Interrupt
from lens_cli.work.reasoner import AskedReasoner, refusal_data

OPENED = 12  # windows of a run at most; a sheet shows more


def carry_out(
    resolved: ResolvedRequest,
    plan: OutputPlan,
    talk: Talk,
    *,
    output: str | None,
    dry_run: bool,
    show: bool | None,
    settings: Settings,
    reasoner: AskedReasoner | None = None,
    parent_id: str | None = None,
    look: bool = False,
) -> None:
    """Paths on stdout, or one JSON answer; the last line on stderr makes the pictures again.

    `output` is the flag as typed. `reasoner` None: the prompt is drawn as it stands, as by `rerun`. Raises typer.Exit
    with the code of what went wrong, if something did. `look`: open the pictures when they are there.
    """
    # Plain `lens gen` of what was drawn here would ask a reasoner that this run did not ask.
    plain = choose_mode(settings.reasoner, resolved.preset)[0]
    off = () if plain is ReasonerMode.off else ("--reasoner", "off")
    if dry_run:
        from lens_cli.work.dry_run import explain

        flags = off if reasoner is None or reasoner.off else reasoner.flags
        asked = reasoner and reasoner.plan
        explain(resolved, plan, settings.generate, talk, output=output, reasoner=asked, flags=flags)
        return
    asked = None if reasoner is None else reasoner.plan
    with (
        open_session(settings, talk) as session,
        Interrupt(says=None) as interrupt,
        Meter(talk=talk, total=len(resolved.request.seeds)) as meter,
    ):
        local = asked is not None and asked.mode is ReasonerMode.local
        teller = Teller(
            talk,
            meter,
            interrupt,
            who="" if reasoner is None else reasoner.who,
            local=local,
            show=(show, settings.output.show),
        )
        try:
            outcome = session.run(
                resolved, plan, rewrite=asked, parent_id=parent_id, on_event=teller, stop=interrupt.stop
            )
        except RefusedError as error:
            assert asked is not None, "nobody was asked, so nobody refused"
            talk.fail(error, refusal_data(error, asked))
            raise typer.Exit(error.exit_code) from None
    if outcome.pictures:
        talk.say(meter.summary(len(outcome.pictures), time.monotonic() - teller.started))
    line = command_line(outcome.resolved.request, settings.generate, output, reasoner=off)
    _tell(outcome, line, talk, look=look)


def _tell(outcome: Outcome, line: str, talk: Talk, *, look: bool) -> None:
    """What was made, and `line`, which makes it again. Raises typer.Exit with the code of what went wrong."""
    request, error = outcome.resolved.request, outcome.error()
    revised = request.prompt if request.expander is not None else None
    data = {**outcome.data(), "request": asdict(request), "revised": revised, "again": line}
    if outcome.pictures:
        talk.say(line)
    for picture in outcome.pictures[:OPENED] if look else ():
        if picture.path is not None:
            view(picture.path, talk)
    if error is None:
        talk.result(data)
    else:
        talk.fail(error, data)
        raise typer.Exit(error.exit_code)


@dataclass
class Teller:
    """Says what a session tells."""

    talk: Talk
    meter: Meter
    interrupt: Interrupt
    who: str  # writes the prompts
    local: bool  # on this machine, where it looks for Ctrl-C
    show: tuple[bool | None, bool | None]  # flag and setting
    showing: bool = False
    started: float = 0.0  # time.monotonic() when the drawing did

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted(phase=Phase.rewrite) if self.local:
                self.interrupt.says = WRITING
            case PromptRewritten():
                before = " before" if event.cached else ""
                self._say(f"rewritten{before} by {self.who}: {event.prompt}")
            case DrawingStarted():
                self._introduce(event.request)
            case PictureFailed():
                self._fail(event)
            case PictureSaved():
                self._save(event)
            case _:
                pass
        self.meter(event)

    def _say(self, text: str) -> None:
        self.meter.pause()
        self.talk.say(text)

    def _introduce(self, request: GenerationRequest) -> None:
        self.interrupt.says = DRAWING
        self._say(describe(request))
        self.talk.detail(f"prompt: {request.prompt}")
        if request.negative_prompt:
            self.talk.detail(f"negative prompt: {request.negative_prompt}")
        self.talk.detail(arithmetic(request))
        self.showing = wanted(*self.show, self.talk)
        self.started, self.meter.peak_bytes = time.monotonic(), 0

    def _fail(self, event: PictureFailed) -> None:
        self.meter.pause()
        self.talk.warn(f"picture {event.index + 1} (seed {event.seed}) failed: {event.error}")
        self.talk.event("failed", image=event.index, seed=event.seed, code=event.error.code, message=str(event.error))

    def _save(self, event: PictureSaved) -> None:
        """Raises FileError where stdout takes nothing: the pictures that are saved are counted, no more are drawn."""
        self.meter.pause()
        if self.showing:  # above the path: what comes last is what is seen
            show(event.generation.image, self.talk)
        row = event.row()
        try:
            if event.data is not None:
                write_bytes(event.data)
            self.talk.event("image", **row)
            if event.path is not None:
                self.talk.data(event.path)
        except OSError as error:
            where = "" if event.path is None else f"; {event.path} is saved"
            reason = "its reader has left" if isinstance(error, BrokenPipeError) else os_reason(error)
            raise FileError(f"cannot write to stdout: {reason}{where}") from error
        self.talk.detail(f"seed {row['seed']}: pixels {row['pixel_sha256'][:16]}, id {row['id']}")
