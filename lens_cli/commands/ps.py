"""`lens ps`: what the server does."""

from __future__ import annotations

from lens_cli import options


def ps(*, host: options.Host = None, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Show the server: what lies in memory until when, what is drawn and what waits. Without one it exits with 3."""
    from lens_cli.work.serve import show

    talk = options.talk_for("ps", json=json, quiet=quiet)
    show(options.load_settings(talk, local=False, host=host), talk)
