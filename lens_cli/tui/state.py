"""What the app remembers from one time to the next: one small JSON file, written whole or not at all.

It comes from a disk that anybody may have written to: what does not fit is left out, field by field.

Light ring: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from backend.disk import write_atomic
from backend.fields import Misfit, from_data
from backend.foreign import documents
from backend.requests import PROMPT_LIMIT
from lens_cli.tui.create.form import LIMITS, Form, SeedMode, rest_rows

VERSION = 1
_MOST = 1 << 18  # bytes
TABS = ("create", "gallery", "train", "search")


@dataclass(frozen=True, kw_only=True)
class State:
    """`folders`: what the tabs that follow a folder followed last."""

    form: Form = field(default_factory=Form)
    tab: str = "create"
    theme: str = ""  # "": the app's own
    open: bool = False  # the folded rest
    folders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def write_state(path: Path, state: State) -> None:
    """Raises FileError."""
    form = state.form
    said = {name: getattr(form, name) for name in ("prompt", "model", "shape", "steps", "guidance", "seed", "count")}
    data = {
        "v": VERSION, "tab": state.tab, "theme": state.theme, "open": state.open, "folders": dict(state.folders),
        "form": said | {"seed_mode": str(form.seed_mode), "rest": dict(form.rest)},
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(data, indent=1).encode(), private=True)  # the prompt that was being written


def read_state(path: Path) -> tuple[State, str | None]:
    """(what was remembered, why nothing was). A file that is not there is no reason."""
    try:
        data = documents.parse_json(documents.read_bytes(path, _MOST))
        if not isinstance(data, dict) or cast("dict[str, Any]", data).get("v") != VERSION:
            return State(), f"{path} is of another version; the app starts afresh"
    except FileNotFoundError:
        return State(), None
    except (OSError, documents.Unreadable):
        return State(), f"{path} cannot be read; the app starts afresh"
    told = cast("dict[str, Any]", data)
    tab = _fits(told.get("tab"), str, "create")
    folders = {key: value for key, value in _texts(told.get("folders")).items() if key in TABS}
    state = State(
        form=_form(told.get("form")), tab=tab if tab in TABS else "create",
        theme=_fits(told.get("theme"), str, "")[:80], open=_fits(told.get("open"), bool, False),
        folders=MappingProxyType(folders),
    )  # fmt: skip
    return state, None


def _form(data: object) -> Form:
    told = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    rows = {row.name for row in rest_rows()}
    mode = _fits(told.get("seed_mode"), str, "random")
    return Form(
        prompt=_fits(told.get("prompt"), str, "")[:PROMPT_LIMIT],
        model=_fits(told.get("model"), str, None),
        shape=_fits(told.get("shape"), str, None),
        steps=_number(told.get("steps"), int, "steps", None),
        guidance=_number(told.get("guidance"), float, "guidance", None),
        seed=_number(told.get("seed"), int, "seeds", 0),
        count=_number(told.get("count"), int, "num", 1),
        seed_mode=SeedMode(mode) if mode in list(SeedMode) else SeedMode.random,
        rest=MappingProxyType({key: value for key, value in _texts(told.get("rest")).items() if key in rows}),
    )


def _fits(value: object, kind: Any, other: Any) -> Any:
    try:
        return from_data(value, kind) if value is not None else other
    except Misfit:
        return other


def _number(value: object, kind: Any, name: str, other: Any) -> Any:
    low, high = LIMITS[name]
    found = _fits(value, kind, other)
    return found if found is None or low <= found <= high else other


def _texts(value: object) -> dict[str, str]:
    pairs = cast("dict[str, Any]", value).items() if isinstance(value, dict) else ()
    return {str(key): text[:2000] for key, text in pairs if isinstance(text, str)}
