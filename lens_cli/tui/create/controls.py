"""The form's controls: six essentials, and a folded rest that is made of the table of wishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from textual import on
from textual.containers import VerticalScroll
from textual.message import Message

from backend.errors import LensError, UsageError
from backend.sizes import TRAINED_RATIOS
from backend.wish import ROWS
from lens_cli.tui.create import form as forms
from lens_cli.tui.create.control import Control, Fold
from lens_cli.tui.create.form import LIMITS, Form, SeedMode, decided, preset_of, rest_rows

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from backend.settings import Settings

TITLES = {"model": "Model", "ar": "Size", "steps": "Steps", "guidance": "Guidance", "seeds": "Seed", "num": "Pictures"}


class Controls(VerticalScroll, can_focus=False):
    """Holds the form but for the words of its prompt, which the box beside it writes."""

    class Said(Message):
        """A person changed the form."""

        def __init__(self, form: Form) -> None:
            super().__init__()
            self.form = form

    class Wrong(Message):
        """A value was refused."""

        def __init__(self, error: LensError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, form: Form, settings: Settings, *, open: bool) -> None:  # noqa: A002  of the fold
        super().__init__(id="controls")
        self.form, self.settings = form, settings
        self.models: tuple[str, ...] = ()  # that the server has; empty: it did not answer yet
        self._open, self._made = open, False

    def compose(self) -> ComposeResult:
        for name, title in TITLES.items():
            yield Control(name, title, steps=self._stepper(name), number=name not in ("model", "ar"))
        yield Fold(open=self._open)
        if self._open:
            yield from self._rest()

    def _rest(self) -> Iterator[Control]:
        """The folded controls; made when they are first seen, which a start does not wait for."""
        self._made = True
        for row in rest_rows():
            options = forms.choices(row)
            steps = self._cycle(row.name, options) if options else None
            yield Control(row.name, _title(row.name), steps=steps, options=options)

    def on_mount(self) -> None:
        self.show()

    @property
    def unfolded(self) -> bool:
        return self.query_one(Fold).open

    def put(self, form: Form) -> None:
        """Another form."""
        self.form = form
        self.show()

    def show(self) -> None:
        """The form on the screen."""
        preset, known = preset_of(self.form, self.settings), decided(self.form, self.settings)
        cannot, unfolded = forms.hidden(preset), self.unfolded
        for name in TITLES:
            control, value = self._control(name), known[name]
            gauge = int(value.text) / max(50, preset.steps) if name == "steps" else -1.0
            control.put(value.text, said=value.origin == "you" and name not in ("seeds", "num"), gauge=gauge)
            control.display = name not in cannot
        for row in rest_rows() if self._made else ():
            said = self.form.rest.get(row.name, "")
            usual = getattr(self.settings.generate, row.name)
            control = self._control(row.name)
            chosen = forms.text_of(usual) if usual is not None else forms.usual_text(row, preset)
            control.put(said or chosen, said=bool(said))
            control.display = unfolded and row.name not in cannot
        rest = self.form.rest.items()
        self.query_one(Fold).put({_title(name).lower(): text for name, text in rest if name not in cannot})

    def _control(self, name: str) -> Control:
        return self.query_one(f"#control-{name}", Control)

    # ---------------------------------------------------------------------------------------- what a control can become

    def model_names(self) -> tuple[str, ...]:
        """What the model can be: what the server has, or until it answers what the registry knows; and the one said."""
        from backend import presets

        found = self.models or presets.names()
        said = self.form.model or self.settings.model
        return found if said is None or said in found else (*found, said)

    def options(self, name: str) -> tuple[str, ...]:
        """All that a control can be; none: any text."""
        if name == "model":
            return self.model_names()
        return TRAINED_RATIOS if name == "ar" else forms.choices(ROWS[name])

    def _stepper(self, name: str) -> Callable[[int], str]:
        steppers: dict[str, Callable[[int], str]] = {
            "model": lambda by: _beside(self.model_names(), self._now("model"), by),
            "ar": lambda by: _beside(TRAINED_RATIOS, self._now("ar").partition(" ")[0], by),
            "steps": lambda by: _bound("steps", int(self._now("steps")) + by),
            "guidance": lambda by: _bound("guidance", float(self._now("guidance")) + by / 2),
            "seeds": lambda by: _beside(tuple(SeedMode), str(self.form.seed_mode), by),
            "num": lambda by: _bound("num", self.form.count + by),
        }
        return steppers[name]

    def _cycle(self, name: str, options: tuple[str, ...]) -> Callable[[int], str]:
        return lambda by: _beside(("", *options), self.form.rest.get(name, ""), by)

    def _now(self, name: str) -> str:
        return decided(self.form, self.settings)[name].text

    # --------------------------------------------------------------------------------------------------------- messages

    @on(Control.Changed)
    def _changed(self, message: Control.Changed) -> None:
        message.stop()
        try:
            form = changed(self.form, message.source.field, message.text.strip(), self.settings)
        except LensError as error:
            self.post_message(self.Wrong(error))
            return
        if form != self.form:
            self.put(form)
            self.post_message(self.Said(form))

    @on(Fold.Toggled)
    async def _folded(self, message: Fold.Toggled) -> None:
        message.stop()
        if not self._made:
            await self.mount_all(self._rest())
        self.show()
        self.post_message(self.Said(self.form))


def changed(form: Form, name: str, text: str, settings: Settings) -> Form:
    """The form with a control given another text; "" takes back what was said. Raises UsageError."""
    if name == "model":
        before, form = preset_of(form, settings), form.said(model=text or None)
        # Another model's steps and guidance are no wish of this one's.
        return (
            form if preset_of(form, settings) is before else form.said(steps=None, guidance=None).with_rest("base", "")
        )
    if name == "ar":
        return form.said(shape=text or None)
    if name == "seeds" and (text in list(SeedMode) or not text):
        mode = SeedMode(text or "random")
        return form.said(seed_mode=mode)
    if name in LIMITS:
        if not text:
            return form.said(**{_FIELDS[name]: 1 if name == "num" else None})
        kind: type = float if name == "guidance" else int
        low, high = LIMITS[name]
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise UsageError(f"{TITLES[name]} {text[:30]} is outside {low:g}..{high:g}")
        more = {"seed_mode": SeedMode.fixed if form.seed_mode is SeedMode.random else form.seed_mode}
        return form.said(**{_FIELDS[name]: value} | (more if name == "seeds" else {}))
    if text:
        forms.check(ROWS[name], text)
    return form.with_rest(name, text)


_FIELDS = {"steps": "steps", "guidance": "guidance", "seeds": "seed", "num": "count"}
_TITLES = {"negative_prompt": "Avoid", "loras": "LoRA", "dtype": "Arithmetic", "lora_mode": "LoRA mode",
           "quant": "Packing", "compiled": "Compile"}  # fmt: skip


def _title(name: str) -> str:
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def _beside(values: tuple[str, ...], now: str, by: int) -> str:
    """The value so many places further, around the end."""
    place = values.index(now) if now in values else 0
    return str(values[(place + by) % len(values)])


def _bound(name: str, value: float) -> str:
    low, high = LIMITS[name]
    return f"{min(max(value, low), high):g}"
