"""A command group that knows its sub-commands by name and one line, and imports a sub-command when it is called.

Light ring. Click's documentation describes the pattern; here it saves a quarter of what `lens --help` takes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from lens_cli.command_page import dress, write_page
from lens_cli.help import BriefCommand

__all__ = ["Lazy", "LazyGroup", "load"]


@dataclass(frozen=True)
class Lazy:
    """Where a sub-command is, and what the group's help says about it."""

    target: str  # "package.module:name" of a function or of a typer.Typer
    summary: str  # the first paragraph of its own help, which a test compares


def load(target: str) -> Any:
    """The object that `Lazy.target` names: a function or a typer.Typer."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


class LazyGroup(TyperGroup):
    """Sub-classes name their sub-commands in `lazy`."""

    lazy: Mapping[str, Lazy] = {}
    panels: Mapping[str, Sequence[str]] = {}  # of the group's help, with the sub-commands in each

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        panel_of = {name: panel for panel, names in self.panels.items() for name in names}
        for name, command in self.lazy.items():
            stand_in = TyperCommand(name, help=command.summary, rich_help_panel=panel_of.get(name))
            self.add_command(stand_in, name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the group's page."""
        write_page(self, ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command in its stand-in's place; shell completion comes by here as well."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.lazy:
            command = build(name, load(self.lazy[name].target))
            self.add_command(command, name)
        return name, command, rest


def build(name: str, source: Any) -> Any:
    """Typer's command for a function, or its group for a typer.Typer, as a registration by hand would make it."""
    parent = typer.Typer(add_completion=False)
    parent.callback()(lambda: None)  # with a callback a lone command stays below a group
    if isinstance(source, typer.Typer):
        parent.add_typer(source, name=name)
    else:
        parent.command(name, cls=BriefCommand if getattr(source, "brief", False) else None)(source)
    return dress(get_group(parent).commands[name])
