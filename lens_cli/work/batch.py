"""Many requests in one run with one load: a file of prompts, or a template whose pictures have words of their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from backend.batch.journal import Journal, journal_file, remaining
from backend.batch.lines import Line, read_lines
from backend.batch.styles import styled
from backend.batch.wildcards import Wildcards, is_template, spread
from backend.disk import read_error, write_new
from backend.errors import CancelledError, FileError, LensError, PartialBatchError, UsageError
from backend.events import Event, PictureSaved
from backend.paths import wildcards_dir
from backend.picture.outputs import OutputPlan
from backend.requests import FoundModel, ResolvedRequest, build_request, find_model
from backend.server.remote import Draws
from backend.settings import Settings
from backend.wish import Wish
from lens_cli.terminal.console import Talk
from lens_cli.terminal.progress import Meter
from lens_cli.terminal.viewer import view
from lens_cli.terminal.wording import command_line, describe
from lens_cli.work.backend import open_session
from lens_cli.work.gen import OPENED, Teller
from lens_cli.work.interrupt import Interrupt
from lens_cli.work.reasoner import AskedReasoner, ask_reasoner

if TYPE_CHECKING:
    from PIL import Image

FILE_BYTES = 64 << 20  # of a file of prompts: ten thousand of the longest


@dataclass(frozen=True, kw_only=True)
class Item:
    """One request of the run."""

    where: str | None  # "prompts.txt line 3"; None: it was typed
    number: int | None  # of the line
    key: str  # of the line, for the journal
    resolved: ResolvedRequest
    plan: OutputPlan
    asked: AskedReasoner
    output: str | None  # the flag, as typed

    def says(self, text: str) -> str:
        """A message that names the line, where there are lines."""
        return text if self.where is None else f"{self.where}: {text}"


@dataclass(frozen=True, kw_only=True)
class Made:
    """One picture of the run, without its pixels: ten thousand of them fit into memory."""

    item: Item
    path: Path | None
    record: Mapping[str, Any]
    row: Mapping[str, Any]  # for JSON


@dataclass(kw_only=True)
class Batch:
    """All requests of a run, and what of them was made."""

    items: list[Item]
    total: int = 0  # pictures that this run makes
    journal: Journal | None = None
    skipped: int = 0  # pictures that an earlier run has finished
    relation: str | None = None  # of the pictures, for the history
    images: dict[str, Image.Image] | None = None  # the pixels by the line's key, for whoever makes one of them all
    pictures: list[Made] = field(default_factory=list[Made])
    failures: list[tuple[Item, int, LensError]] = field(default_factory=list[tuple[Item, int, LensError]])

    def error(self) -> LensError | None:
        """The one error that decides the exit code; None: all pictures are there."""
        if not self.failures:
            return None
        cause, made = self.failures[0][2], len(self.pictures)
        if any(isinstance(error, CancelledError) for _, _, error in self.failures):
            return CancelledError(f"stopped: {made} of {self.total} pictures finished")
        if not made:
            return cause
        return PartialBatchError(f"{self.total - made} of {self.total} pictures failed: {cause}", hint=cause.hint)

    def data(self) -> dict[str, Any]:
        """The run for JSON."""
        return {
            "images": [{**made.row, "line": made.item.number} for made in self.pictures],
            "failed": [
                {"line": item.number, "seed": seed, "code": error.code, "message": str(error)}
                for item, seed, error in self.failures
            ],
            "skipped": self.skipped,
        }


# ------------------------------------------------------------------------------------------------------------- planning


@dataclass(kw_only=True)
class Planner:
    """Makes requests of wishes, and looks every model up once."""

    settings: Settings
    talk: Talk
    places: Callable[[Wish, int], OutputPlan]  # where so many pictures of a wish go
    wildcards: Wildcards = field(default_factory=lambda: Wildcards(wildcards_dir()))
    models: dict[str, FoundModel] = field(default_factory=dict[str, FoundModel])

    def file(self, path: Path, base: Wish, *, proceed: bool) -> Batch:
        """Every line of a file over `base`, checked before anything is drawn. Raises UsageError naming the line."""
        name = "stdin" if path == Path("-") else str(path)
        lines = read_lines(_read(path), name, base)
        plan = self.places(base, len(lines))  # refuses what no batch can do
        if plan.template is None:
            raise UsageError("--prompts makes pictures to keep, and -o - none", hint="save to a folder: -o DIR/")
        return self.lines(lines, journal=Journal(journal_file(plan, name), proceed=proceed))

    def wish(self, wish: Wish) -> Batch:
        """One wish, whose pictures may have words of their own. Raises UsageError."""
        if wish.wildcard_seed is not None and not self._is_template(wish):
            self.talk.warn("--wildcard-seed is ignored: nothing in the prompt is drawn")
            wish = replace(wish, wildcard_seed=None)
        return self.lines([Line(where="", number=0, wish=wish, key="")])

    def lines(self, lines: Sequence[Line], *, journal: Journal | None = None) -> Batch:
        """The requests of lines, without the pictures that the journal has. Raises as `build_request`."""
        batch = Batch(items=[], journal=journal)
        for line in lines:
            try:
                self._add(line, batch)
            except UsageError as error:
                raise UsageError(f"{line.where}: {error}" if line.where else str(error), hint=error.hint) from None
        if batch.total > 1:
            for item in batch.items:
                if item.plan.template is None:
                    raise UsageError(f"-o - takes one picture, not {batch.total}", hint="save to a folder: -o DIR/")
        return batch

    def _add(self, line: Line, batch: Batch) -> None:
        requests = [
            (wish, self._build(wish)) for wish in spread(self._over_settings(styled(line.wish)), self.wildcards)
        ]
        done = [] if batch.journal is None else batch.journal.seeds(line.key)
        seeds = [seed for _, resolved in requests for seed in resolved.request.seeds]
        drawn = not line.wish.seeds or "-1" in line.wish.seeds
        left = set(remaining(seeds, done, drawn=drawn))
        batch.skipped += len(seeds) - len(left)
        place = 0
        for wish, resolved in requests:
            request = resolved.request
            kept = tuple(seed for k, seed in enumerate(request.seeds, place) if k in left)
            place += len(request.seeds)
            if kept:
                resolved = replace(resolved, request=replace(request, seeds=kept))
                batch.items.append(self._item(line, wish, resolved, first=batch.total))
                batch.total += len(kept)

    def _is_template(self, wish: Wish) -> bool:
        return self._over_settings(wish).wildcards is not False and is_template(wish.prompt or "")

    def _over_settings(self, wish: Wish) -> Wish:
        """With the settings' say about wildcards."""
        return wish if wish.wildcards is not None else replace(wish, wildcards=self.settings.generate.wildcards)

    def _build(self, wish: Wish) -> ResolvedRequest:
        from backend.presets import default_name

        name = wish.model or self.settings.model or default_name()
        if name not in self.models:
            self.models[name] = find_model(name)
        return build_request(wish, self.settings, self.talk.warn, found=self.models[name])

    def _item(self, line: Line, wish: Wish, resolved: ResolvedRequest, *, first: int) -> Item:
        return Item(
            where=line.where or None,
            number=line.number or None,
            key=line.key,
            resolved=resolved,
            plan=replace(self.places(wish, len(resolved.request.seeds)), first=first),
            asked=ask_reasoner(
                self.settings, resolved, self.talk, mode=wish.reasoner, system_prompt=wish.system_prompt
            ),
            output=wish.output,
        )


def _read(path: Path) -> str:
    try:
        if path == Path("-"):
            data = sys.stdin.buffer.read(FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise read_error(path, error, "a file of prompts, one a line, or JSON Lines: lens help prompts") from error
    if len(data) > FILE_BYTES:
        raise UsageError(f"{path} is longer than a file of prompts may be: {FILE_BYTES >> 20} MB")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="save it as UTF-8") from None


# -------------------------------------------------------------------------------------------------------- carrying out


def carry_out_all(
    batch: Batch,
    settings: Settings,
    talk: Talk,
    *,
    show: bool | None,
    dry_run: bool,
    sheet: Path | None = None,
    look: bool = False,
) -> None:
    """Paths on stdout as pictures are done, or one JSON answer. One request that fails does not end the run.

    Raises typer.Exit with the code of what went wrong, if something did.
    """
    if batch.skipped:
        talk.say(f"{batch.skipped} pictures are there already")
    if dry_run:
        explain(batch, talk)
        return
    for item in batch.items:
        item.resolved.need_files()
    started = time.monotonic()
    with (
        open_session(settings, talk) as session,
        Interrupt(says=None) as interrupt,
        Meter(talk=talk, total=batch.total) as meter,
    ):
        draw_all(batch, session, interrupt, meter, show=(show, settings.output.show))
    error = batch.error()
    if batch.pictures:
        talk.say(meter.summary(len(batch.pictures), time.monotonic() - started))
    data = batch.data()
    if sheet is not None and batch.pictures:
        data["sheet"] = str(_write_sheet(sheet, batch, talk))
    if look:
        for path in (
            [data["sheet"]] if "sheet" in data else [made.path for made in batch.pictures[:OPENED] if made.path]
        ):
            view(Path(path), talk)
    if error is None:
        talk.result(data)
        return
    talk.fail(error, data)
    raise typer.Exit(error.exit_code)


def draw_all(
    batch: Batch, session: Draws, interrupt: Interrupt, meter: Meter, *, show: tuple[bool | None, bool | None]
) -> None:
    """Every request in order; what fails is entered, and the next one is drawn, but after Ctrl-C or a full disk."""
    for number, item in enumerate(batch.items, 1):
        request, before = item.resolved.request, len(batch.pictures)
        meter.total = len(request.seeds)
        if len(batch.items) > 1:
            meter.pause()
            meter.talk.say(f"[{number}/{len(batch.items)}] {' '.join(request.prompt.split())}")
        teller = Teller(
            meter.talk, meter, interrupt, who=item.asked.who, local=item.asked.plan.mode == "local", show=show
        )

        def listen(event: Event, item: Item = item, teller: Teller = teller) -> None:
            if isinstance(event, PictureSaved):
                if event.path is not None and batch.journal is not None:
                    batch.journal.add(item.key, event.generation.seed, event.path)
                row = {**event.row(), "prompt": event.record["prompt"]}
                batch.pictures.append(Made(item=item, path=event.path, record=event.record, row=row))
                if batch.images is not None:
                    batch.images[item.key] = event.generation.image
                    event = replace(event, data=None)  # bytes that nobody asked for
            teller(event)

        failed: LensError | None
        try:
            outcome = session.run(
                item.resolved, item.plan, rewrite=item.asked.plan, relation=batch.relation, on_event=listen,
                stop=interrupt.stop,
            )  # fmt: skip
            batch.failures += [(item, failure.seed, failure.error) for failure in outcome.failures]
            failed = outcome.stopped
        except LensError as error:
            failed = error
        if failed is not None:
            done = len(batch.pictures) - before
            batch.failures.append((item, request.seeds[min(done, len(request.seeds) - 1)], failed))
            if isinstance(failed, (CancelledError, FileError)):
                return  # the next one would meet the same
            meter.pause()
            meter.talk.warn(item.says(str(failed)))


def explain(batch: Batch, talk: Talk) -> None:
    """What would be drawn: names on stdout, requests on stderr."""
    now, rows = datetime.now(), list[dict[str, Any]]()
    for item in batch.items:
        request = item.resolved.request
        talk.say(item.says(f"{describe(request)}: {' '.join(request.prompt.split())}"))
        outputs = [str(path) for path in item.plan.paths(request, now)] if item.plan.template is not None else []
        for path in outputs:
            talk.data(path)
        again = command_line(request, Wish(), item.output)
        rows.append({"line": item.number, "prompt": request.prompt, "outputs": outputs, "again": again})
    talk.result({"requests": rows, "skipped": batch.skipped})


def _write_sheet(path: Path, batch: Batch, talk: Talk) -> Path:
    from backend.picture.sheets import html_sheet

    pictures = [(made.path, made.record) for made in batch.pictures if made.path is not None]
    path = write_new(path, html_sheet(pictures, path.absolute().parent).encode())
    talk.say(f"contact sheet: {path}")
    return path
