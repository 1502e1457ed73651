"""`lens doctor`: what this machine has, and whether lens can work on it."""

from __future__ import annotations

from typing import Any

from lens_cli import options


def doctor(
    json: options.Json = False,
    no_torch: options.NoTorch = False,
) -> None:
    """Show Python, memory, disks, torch and its devices, packages, models and the terminal's graphics.

    Also which pieces of the code for GPUs the environment switches off.
    """
    from lens_cli.terminal.wrap import say_rows
    from lens_cli.work.doctor import report

    talk = options.talk_for("doctor", json=json)
    found = report(with_torch=not no_torch)
    for section, values in found.items():
        if values:
            talk.data(section)
        for key, value in values.items():
            name = key if key.isupper() else key.replace("_", " ")
            say_rows([f"  {name:<22} {_text(value)}"], 25, talk)
    talk.result(found)


def _text(value: Any) -> str:
    from backend.errors import human_bytes

    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 1_000_000:  # every such number in the report is bytes
        return human_bytes(value)
    return str(value)
