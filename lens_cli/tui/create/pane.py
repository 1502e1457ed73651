"""The first tab: the prompt, the controls and the queue; the picture beside them, and the last ones below it."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from textual import on, work
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message

from backend.errors import LensError, RefusedError
from backend.requests import check_prompt
from backend.wishes.command_words import command_words
from lens_cli.terminal.console import one_line
from lens_cli.terminal.graphics import Graphics
from lens_cli.tui.create.control import Control
from lens_cli.tui.create.controls import Controls
from lens_cli.tui.create.form import Form, advance, form_from_wish, wish_from_form
from lens_cli.tui.create.prompt_box import PromptBox
from lens_cli.tui.jobs.link import Link
from lens_cli.tui.jobs.queue import Queue
from lens_cli.tui.picture.view import PicturePane

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from backend.picture.outputs import OutputPlan
    from backend.settings import Settings
    from backend.wish import Wish
    from lens_cli.tui.create.refine import Refine
    from lens_cli.tui.jobs.connection import Connection

EMPTY = "The picture appears here.\n\nWrite what to draw, and press Enter.\nF1 explains what has the focus."


class Create(Horizontal):
    """Makes wishes of the form and gives them to `link`."""

    class Said(Message):
        """The form says something else now."""

    class Saved(Message):
        """A picture is on the disk."""

    class Failed(Message):
        """Something that a person has to know."""

        def __init__(self, error: LensError) -> None:
            super().__init__()
            self.error = error

    def __init__(
        self, form: Form, settings: Settings, link: Link, *, open: bool, graphics: Graphics, folder: Path | None  # noqa: A002
    ) -> None:  # fmt: skip
        """`open`: the folded rest. `folder`: of pictures; None: the settings'."""
        super().__init__(id="create")
        self.settings, self.link, self.graphics, self.folder = settings, link, graphics, folder
        self.caption = ""
        self._first, self._open = form, open
        self._made_from: str | None = None  # id of the picture that the form was filled from

    def compose(self) -> ComposeResult:
        with Vertical(id="rail"):
            yield PromptBox()
            yield Controls(self._first, self.settings, open=self._open)
            yield Queue(self.link.jobs)
        with Vertical(id="stage"):
            yield PicturePane(EMPTY, graphics=self.graphics, id="picture")

    def on_mount(self) -> None:
        self.prompt.put(self._first.prompt)

    @property
    def prompt(self) -> PromptBox:
        return self.query_one(PromptBox)

    @property
    def controls(self) -> Controls:
        return self.query_one(Controls)

    @property
    def form(self) -> Form:
        found = self.query(Controls)
        return found.first().form if found else self._first

    @property
    def pane(self) -> PicturePane:
        return self.query_one("#picture", PicturePane)

    def put(self, form: Form) -> None:
        """Another form, as by a remix, a paste or a rewrite."""
        self.controls.put(form)
        self.prompt.put(form.prompt)
        self.post_message(self.Said())

    def _fail(self, error: LensError) -> None:
        self.post_message(self.Failed(error))

    def _wish(self) -> Wish | None:
        """The form's wish; None: it was said why there is none."""
        try:
            return wish_from_form(self.form, self.settings)
        except LensError as error:
            self._fail(error)
            return None

    # --------------------------------------------------------------------------------------------------------- drawing

    @on(PromptBox.Entered)
    def draw(self) -> None:
        """Put the form's wish into the queue."""
        wish, parent = self._wish(), self._made_from
        if wish is None:
            return
        try:
            check_prompt(wish.prompt or "", "prompt")
            plan = self._plan(wish)
        except LensError as error:
            self._fail(error)
            return
        relation = "remix" if parent is not None else None
        if self.link.connection is None:
            self.notify("drawn as soon as the server answers", markup=False)
        self.link.ask_job(lambda server: server.submit(wish, plan, parent_id=parent, relation=relation))
        self.put(advance(self.form))

    def _plan(self, wish: Wish) -> OutputPlan:
        """Where the pictures go: the settings' folder, or the app's own."""
        from backend.picture.outputs import plan_output

        output = self.settings.output
        plan = plan_output(
            None, format=wish.format, quality=None, metadata=output.metadata,
            default_folder=self.settings.output_dir if self.folder is None else str(self.folder),
            default_template=output.template, default_format=output.format, default_quality=output.quality,
        )  # fmt: skip
        return replace(plan, history=self.settings.history)

    def stop(self) -> None:
        """Cancel the job that runs."""
        running = self.link.jobs.running()
        if running is None:
            self.notify("nothing is being drawn", markup=False)
        else:
            self.link.ask_job(lambda server: server.cancel(running.job.id))

    @on(Queue.Asked)
    def _queue_asked(self, message: Queue.Asked) -> None:
        watched, job = message.job, message.job.job
        if message.what == "cancel" and not job.state.ended:
            self.link.ask_job(lambda server: server.cancel(job.id))
        elif message.what == "move" and job.position is not None:
            position = max(0, job.position + message.by)
            self.link.ask(lambda server: server.move(job.id, position), lambda _: self.link.list())
        elif message.what == "open" and watched.pictures:
            self.pane.show(watched.pictures[-1])

    def heard(self, message: Link.Heard) -> None:
        """An event of the job that runs."""
        event, picture = message.event, message.picture
        name = event.get("event")
        if picture is not None:
            self.pane.show(picture, final=name == "picture_saved")
        if name == "picture_saved":
            self.caption = _saved_line(event)
            self.pane.say(self.caption)
            self.post_message(self.Saved())
        elif name in ("step_done", "phase_started"):
            self.pane.say(message.watched.line())
        elif name == "noticed" and event.get("severity") == "warning":
            self.notify(one_line(str(event.get("text"))), severity="warning", markup=False)
        elif name == "picture_failed":
            self._fail(LensError(one_line(str(event.get("message")))))

    # -------------------------------------------------------------------------------------------------------- the form

    @on(PromptBox.Changed)
    def _wrote(self, message: PromptBox.Changed) -> None:
        message.stop()
        text = message.text_area.text
        if message.text_area is self.prompt and text != self.form.prompt:
            self.controls.form = self.form.said(prompt=text)
            if not text:
                self._made_from = None  # something new
            self.post_message(self.Said())

    @on(Controls.Said)
    def _said(self, message: Controls.Said) -> None:
        message.stop()
        self.post_message(self.Said())

    @on(Controls.Wrong)
    def _wrong(self, message: Controls.Wrong) -> None:
        message.stop()
        self._fail(message.error)

    @on(Control.Opened)
    def _opened(self, message: Control.Opened) -> None:
        from lens_cli.tui.create.about import about
        from lens_cli.tui.dialogs import Ask, Pick

        message.stop()
        control, options = message.source, self.controls.options(message.source.field)
        said = self.form.rest.get(control.field, "")

        def take(text: str | None) -> None:
            if text is not None:
                control.post_message(Control.Changed(control, text))

        if options:
            self.app.push_screen(Pick(control.title, options, said or control.value.partition(" ")[0]), take)
        elif not control.number:
            self.app.push_screen(Ask(control.title, about(control.field), message.start or said), take)

    @on(PromptBox.Pasted)
    def _pasted(self, message: PromptBox.Pasted) -> None:
        from lens_cli.tui.create.paste import read_picture_or_line

        message.stop()
        try:
            wish = read_picture_or_line(message.text)
        except LensError as error:
            self._fail(error)
            return
        if wish is None:
            self.prompt.take(message.text)
        else:
            self.fill(wish, seed=True)

    def fill(self, wish: Wish, *, seed: bool, parent: str | None = None) -> None:
        """The form says this wish. `seed` False: with a random one. `parent`: the picture whose wish it was."""
        try:
            self.put(form_from_wish(wish, seed=seed))
        except LensError as error:
            self._fail(error)
            return
        self._made_from = parent
        self.prompt.focus()
        self.notify("the form is filled", markup=False)

    def edit(self) -> None:
        """The prompt in the person's own editor."""
        from textual.app import SuspendNotSupported

        from lens_cli.work.refine import edited

        try:
            with self.app.suspend():
                text = edited(self.form.prompt)
        except LensError as error:
            self._fail(error)
        except SuspendNotSupported:
            self._fail(LensError("an editor cannot take over this terminal"))
        else:
            self.put(self.form.said(prompt=text))
        self.app.refresh(layout=True)

    def command(self) -> str | None:
        """The form as a line for a shell; None: it was said why there is none."""
        wish = self._wish()
        return None if wish is None else shlex.join(["lens", "gen", *command_words(wish)])

    # ----------------------------------------------------------------------------------------------------- the reasoner

    def refine(self) -> None:
        """Ask the reasoner, and show what it makes of the prompt."""
        from lens_cli.tui.create.refine import Refine

        form, connection = self.form, self.link.connection
        if not form.prompt.strip():
            self.notify("write a prompt first", severity="warning", markup=False)
            return
        if connection is None:
            self.link.open()
            self.notify("the server does not answer yet", severity="warning", markup=False)
            return
        screen = Refine(form.prompt, waits=self.link.jobs.running() is not None and _asks_model(self.settings))

        def take(text: str | None) -> None:
            if text is not None and text.strip():
                self.put(_rewritten(form, text.strip(), screen.answered))

        self.app.push_screen(screen, take)
        self._refine(connection, form.prompt, screen)

    @work(thread=True, exclusive=True, group="refine")
    def _refine(self, connection: Connection, text: str, screen: Refine) -> None:
        try:
            answer = connection.refine(text)
        except LensError as error:
            rule = f"\nrule: {error.rule}" if isinstance(error, RefusedError) and error.rule else ""
            self.app.call_from_thread(screen.refuse, Content(f"{error}{rule}\n{error.hint or ''}"))
            return
        self.app.call_from_thread(screen.answer, answer)


def _asks_model(settings: Settings) -> bool:
    """Whether the model's own reasoner is asked, and no endpoint."""
    from backend import presets
    from backend.reasoner.refine import choose_mode
    from backend.types import ReasonerMode

    return choose_mode(settings.reasoner, presets.get(presets.default_name()))[0] is not ReasonerMode.api


def _rewritten(form: Form, text: str, answer: Mapping[str, Any]) -> Form:
    """The form with an accepted rewrite; one that a person edited is nobody's but theirs."""
    from backend.fields import Misfit, from_data, types_of
    from backend.types import Expander

    told = answer.get("expander")
    if text != str(answer.get("prompt", "")).strip() or not isinstance(told, dict):
        return form.said(prompt=text, rewrite=None)
    try:
        values = cast("dict[str, Any]", told)
        expander = Expander(**{name: from_data(values.get(name), kind) for name, kind in types_of(Expander).items()})
    except Misfit:
        return form.said(prompt=text, rewrite=None)
    return form.said(prompt=text, rewrite=(text, form.prompt, expander))


def _saved_line(event: Mapping[str, Any]) -> str:
    told = event.get("timings")
    timings = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
    took = sum(seconds for seconds in timings.values() if isinstance(seconds, (int, float)))
    path = event.get("path")
    name = f" · {Path(path).name}" if isinstance(path, str) else ""
    return one_line(f"seed {event.get('seed')} · {event.get('width')}×{event.get('height')} · {took:.1f} s{name}")
