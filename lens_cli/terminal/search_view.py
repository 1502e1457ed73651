"""A search as a person watches it: a panel that is redrawn in place, or a line for each decision where stderr is no
terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lens_cli.terminal.console import Talk, printable, talking_to_a_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from train.search.evaluator import Sample
    from train.search.folder import SearchFolder
    from train.search.spending import Spending

ROWS = 12  # decisions that stay in sight
EVERY = 50  # pictures between two lines where there is no terminal


class SearchView(AbstractContextManager["SearchView"]):
    """Listens to `train.search.run`."""

    def __init__(self, talk: Talk, folder: SearchFolder, spending: Spending) -> None:
        self.talk, self.spending = talk, spending
        self.limits = folder.config.limits
        self._rows: list[str] = [line for row in folder.events.rows if (line := line_of(row))]
        self._now, self._samples = "beginning", list[float]()
        self._drawn = 0
        self._live: Live | None = None

    def __enter__(self) -> SearchView:
        if not self.talk.quiet and not self.talk.json and talking_to_a_terminal():
            from rich.live import Live

            self._live = Live(self._panel(), console=self.talk.screen(), refresh_per_second=4, transient=True)
            self._live.start()
        elif self._rows:
            self.talk.say(f"going on after: {self._rows[-1]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            for line in self._rows[-ROWS:]:
                self.talk.say(line)

    # ---------------------------------------------------------------------------------------------------------- events

    def say(self, text: str) -> None:
        if self._live is not None:
            self._rows.append(text)
            self._redraw()
        else:
            self.talk.say(text)

    def event(self, row: dict[str, Any]) -> None:
        """A decision, or that something begins."""
        if row["event"] == "writing":
            self._now = f"candidate {row['iteration'] + 1}: the writer writes"
        elif row["event"] == "validating":
            self._now = f"{row['name']} is validated, as number {row['number']}"
        line = line_of(row)
        if line:
            self._now, self._samples = "", []
            self._rows.append(line)
            if self._live is None:
                self.talk.say(line)
        self._redraw()

    def sample(self, sample: Sample) -> None:
        """A picture that is judged."""
        self._drawn += 1
        if sample.score is not None:
            self._samples.append(sample.score)
        self._now = f"{sample.candidate}: {sample.request}"
        if self._live is None and self._drawn % EVERY == 0:
            self.talk.say(f"{self.spending.words()}; {sample.candidate}, mean {self._mean():.3f}")
        self._redraw()

    # ---------------------------------------------------------------------------------------------------------- panels

    def _mean(self) -> float:
        return sum(self._samples) / len(self._samples) if self._samples else 0.0

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(self._panel())

    def _panel(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        lines: list[RenderableType] = [
            Text(printable(line), no_wrap=True, overflow="ellipsis") for line in self._rows[-ROWS:]
        ]
        mean = f"   mean {self._mean():.3f} of {len(self._samples)}" if self._samples else ""
        lines.append(Text(f"{printable(self._now)}{mean}", style="bold", no_wrap=True, overflow="ellipsis"))
        if self.limits.pictures is not None:
            lines.append(ProgressBar(total=self.limits.pictures, completed=self.spending.pictures))
        lines.append(Text(self.spending.words(), style="dim"))
        return Panel(Group(*lines), title="prompt search", title_align="left")


def line_of(row: dict[str, Any]) -> str:
    """An event in words; empty for those that nobody has to read."""
    kind = row["event"]
    if kind == "baselines":
        return f"first prompt {row['first']:.3f}, no rewriting {row['none']:.3f} ({row['prompts']} validation requests)"
    if kind == "candidate" and row["flaw"] is not None:
        return f"{row['name']} is not usable: {row['flaw']}"
    if kind == "candidate":
        return f"{row['name']} from {row['parent']}: {row['changes'] or 'a new text'}"
    if kind == "gate":
        return (
            f"{row['name']} {'passes' if row['passed'] else 'fails'} the gate: {row['mean']:+.3f} on {row['prompts']}"
        )
    if kind == "ruling":
        return (
            f"{row['name']} {row['outcome']}: {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] on "
            f"{row['prompts']}, p {row['p']:.4f} at {row['alpha']:.4f}"
        )
    if kind == "confirming":
        return f"{row['winner']} is confirmed on the test split"
    return ""
