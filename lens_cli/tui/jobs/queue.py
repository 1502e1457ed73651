"""The queue as a list: one line a job, cancelled and moved by keys."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from lens_cli.terminal.console import one_line
from lens_cli.tui.jobs.progress import Jobs, Watched
from lens_cli.tui.keys import bindings

SIGNS = {"queued": ("○", "$foreground-muted"), "running": ("●", "$text-accent"), "done": ("✓", "$text-success"),
         "failed": ("✗", "$text-error"), "cancelled": ("–", "$foreground-muted")}  # fmt: skip
BAR = 8  # cells


class Queue(Widget, can_focus=True):
    """Shows `jobs`, which whoever owns it changes; `refresh` draws it again."""

    DEFAULT_CSS = """
    Queue { border: round $surface-lighten-2; padding: 0 1; }
    Queue:focus { border: round $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(-1)", "Up", show=False),
        Binding("down,j", "go(1)", "Down", show=False),
        Binding("enter", "open", "Show", show=False),
        *bindings("queue"),
    ]

    class Asked(Message):
        """A person wants something of a job: "cancel", "move" by a number of places, or to see it: "open"."""

        def __init__(self, job: Watched, what: str, by: int = 0) -> None:
            super().__init__()
            self.job, self.what, self.by = job, what, by

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(id="queue")
        self.jobs, self._chosen = jobs, ""
        self.border_title = "Queue"

    @property
    def chosen(self) -> Watched | None:
        """The job under the cursor; the first where that one is no longer listed."""
        listed = self.jobs.listed()
        return next((one for one in listed if one.job.id == self._chosen), listed[0] if listed else None)

    def render(self) -> Content:
        listed, wide = self.jobs.listed(), self.size.width
        if not listed:
            return Content.styled("empty", "$foreground-disabled")
        place = listed.index(self.chosen) if self.chosen in listed else 0
        first = max(0, min(place - self.size.height // 2, len(listed) - self.size.height))
        return Content("\n").join(
            self._line(one, wide, one is self.chosen and self.has_focus)
            for one in listed[first : first + self.size.height]
        )

    def _line(self, one: Watched, wide: int, chosen: bool) -> Content:
        sign, colour = SIGNS[one.state]
        said = one_line(one.line() if wide >= 40 else one.short())
        parts = [Content.styled(f"{sign} ", colour)]
        if one.state == "running":
            full = round(one.share * BAR)
            parts += [
                Content.styled("━" * full, "$text-accent"),
                Content.styled("━" * (BAR - full) + " ", "$surface-lighten-2"),
            ]
        parts.append(
            Content.styled(
                f"{said if one.state == 'failed' else said[: wide // 2]}  ",
                "$text-error" if one.state == "failed" else "$foreground-muted",
            )
        )
        parts.append(Content.styled(one_line(one.job.prompt[:200]), ""))
        line = Content.assemble(*parts).truncate(wide, ellipsis=True, pad=chosen)
        return line.stylize("reverse") if chosen else line

    def action_go(self, by: int) -> None:
        listed = self.jobs.listed()
        if listed and self.chosen is not None:
            place = min(len(listed) - 1, max(0, listed.index(self.chosen) + by))
            self._chosen = listed[place].job.id
            self.refresh()

    def _ask(self, what: str, by: int = 0) -> None:
        if self.chosen is not None:
            self._chosen = self.chosen.job.id
            self.post_message(self.Asked(self.chosen, what, by))

    def action_cancel(self) -> None:
        self._ask("cancel")

    def action_move(self, by: int) -> None:
        self._ask("move", by)

    def action_open(self) -> None:
        self._ask("open")
