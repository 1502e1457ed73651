"""Opens a finished file in whatever this desktop shows such files with."""

from __future__ import annotations

from pathlib import Path

import typer

from lens_cli.terminal.console import Talk


def view(path: Path, talk: Talk) -> None:
    """Open it, and do not wait; where nothing opens files (a server, a container), say so."""
    try:
        failed = typer.launch(str(path.absolute()))
    except OSError:
        failed = 1
    if failed:
        talk.warn(f"--open: nothing here opens {path.name}; it lies in {path.absolute().parent}")
