"""The fourth tab: a prompt search as its folder tells it: the candidates by their scores, and what was decided."""

# Textual does not say of what its App is generic.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from backend.errors import UsageError, os_reason
from backend.paths import expanded
from lens_cli.terminal.console import one_line
from lens_cli.tui.dialogs import Ask
from lens_cli.tui.follow.lines import Follower
from lens_cli.tui.follow.train import EVERY, Followed
from lens_cli.tui.keys import bindings

NO_SEARCH = "Press o and name the folder of a search."
FILES = ("events.jsonl", "samples.jsonl", "spent.jsonl")
_EVENTS = 8  # of the last, that are shown
_BAR = 24  # cells


class SearchTab(VerticalScroll, can_focus=True):
    """Looks at the folder every two seconds, in a thread, while the tab is seen."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("follow")[:1]

    def __init__(self, folder: str) -> None:
        super().__init__(id="search")
        self.folder = folder
        self._followers: dict[str, Follower] = {}

    def compose(self) -> ComposeResult:
        yield Static(Content(NO_SEARCH), id="search-facts")

    def on_mount(self) -> None:
        self.set_interval(EVERY, self.look)
        self.look()

    def look(self) -> None:
        if self.folder and self.is_on_screen:
            self._look(self.folder)

    @work(thread=True, exclusive=True, group="look")
    def _look(self, named: str) -> None:
        try:
            folder = expanded(named)
            if not (folder / "config.json").is_file():
                text = Content(f"{folder}: no search here\n\n{NO_SEARCH}")
            else:
                text = report(folder.name, *(self._rows(folder / name) for name in FILES))
        except UsageError as error:  # a home that is not there
            text = Content(f"{error}\n\n{NO_SEARCH}")
        except OSError as error:
            text = Content(f"{named}: {os_reason(error)}\n\n{NO_SEARCH}")
        self.app.call_from_thread(self.query_one("#search-facts", Static).update, text)

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        # Each sample repeats its whole system prompt.
        keys = frozenset({"candidate", "score"}) if path.name == "samples.jsonl" else None
        follower = self._followers.setdefault(path.name, Follower(path, keys=keys))
        if path.is_file():
            follower.look()
        return follower.rows

    def follow(self, folder: str) -> None:
        self.folder = folder
        self._followers.clear()
        self.post_message(Followed("search", folder))
        self.look()

    def action_open(self) -> None:
        def take(text: str | None) -> None:
            if text and text.strip():
                self.follow(text.strip())

        self.app.push_screen(Ask("Search", "The folder of a prompt search", self.folder), take)


def report(
    name: str, events: list[dict[str, Any]], samples: list[dict[str, Any]], spent: list[dict[str, Any]]
) -> Content:
    """A search in lines: what was spent, the candidates, the last decisions."""
    pictures = sum(row["pictures"] for row in spent if isinstance(row.get("pictures"), (int, float)))
    seconds = sum(row["seconds"] for row in spent if isinstance(row.get("seconds"), (int, float)))
    lines = [
        Content.assemble(
            Content.styled(name, "$text-accent bold"), f"  {pictures:,.0f} pictures, {seconds / 60:.0f} min of drawing"
        ),
        Content(""),
        Content.styled(f"{'candidate':<12}{'score':>7}  {'':{_BAR}}  pictures", "$foreground-muted"),
    ]
    for candidate, (score, number) in sorted(standings(samples).items(), key=lambda item: -item[1][0]):
        full = round(max(0.0, min(1.0, score)) * _BAR)
        bar = [Content.styled("━" * full, "$text-accent"), Content.styled("━" * (_BAR - full), "$surface-lighten-2")]
        lines.append(Content.assemble(f"{candidate:<12}{score:>7.3f}  ", *bar, f"  {number:,}"))
    lines += [Content(""), Content.styled("last decisions", "$foreground-muted")]
    for row in reversed(events[-_EVENTS:]):
        facts = ", ".join(
            f"{key} {_short(value)}" for key, value in row.items() if key not in ("event", "check", "time")
        )
        lines.append(Content(one_line(f"{row.get('event', '?')}  {facts}")))
    return Content("\n").join(lines)


def standings(samples: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """{candidate: (mean score, pictures)} of the samples that have a score."""
    scores = dict[str, list[float]]()
    for row in samples:
        score, candidate = row.get("score"), row.get("candidate")
        if isinstance(score, (int, float)) and isinstance(candidate, str):
            scores.setdefault(one_line(candidate)[:12], []).append(float(score))
    return {name: (sum(found) / len(found), len(found)) for name, found in scores.items()}


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
