"""What `lens mcp` does: tools over a session, until its client goes away."""

from __future__ import annotations

from importlib.metadata import version

from backend.errors import optional_package
from backend.paths import expanded, pictures_dir
from backend.settings import Settings
from lens_cli.terminal.console import Talk
from lens_cli.work.backend import open_session


def serve(settings: Settings, talk: Talk, folder: str | None) -> None:
    """Raises LensError where the package `mcp` is not installed."""
    with optional_package():
        from backend.server import agents
    chosen = folder or settings.output_dir
    where = pictures_dir() if chosen is None else expanded(chosen).absolute()
    with open_session(settings, talk) as session:
        agents.serve(settings, where, session, version("lens"))
