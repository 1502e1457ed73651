"""Endpoints that this person has named: an address that came with somebody's folder is not one of them.

A work folder travels. What it says of an endpoint would send the person's pictures, and a key, to whoever wrote it;
so such an address is asked only after the person has written it once, on the command line or in the own settings.
Those that were written on a command line are kept in one file of the data folder. Light ring: standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path

from backend import paths
from backend.disk import make_folder, write_atomic
from backend.errors import UsageError, shown
from backend.foreign import documents
from backend.settings import ReasonerSettings

MOST = 1000  # addresses that are kept


def endpoints_file() -> Path:
    """The file that lists them."""
    return paths.data_dir() / "endpoints.json"


def name_endpoint(base_url: str) -> None:
    """Keep an address that the person has written. Raises FileError where it cannot be written."""
    known = _known()
    if base_url not in known:
        make_folder(endpoints_file().parent)
        write_atomic(endpoints_file(), json.dumps([*known, base_url][-MOST:], indent=1).encode())


def check_named(base_url: str, settings: ReasonerSettings, *, origin: str, allow: str) -> None:
    """Raises UsageError for an address that the person has never written: neither in the settings nor before.

    `origin` is where it was found, `allow` what the person has to write to allow it.
    """
    if base_url != settings.base_url and base_url not in _known():
        raise UsageError(
            f"{origin} names the endpoint {shown(base_url)}, which you have not: neither pictures nor a key go there",
            hint=f"if it is yours, say so once: {allow}",
        )


def _known() -> list[str]:
    try:
        found = documents.parse_json(documents.read_bytes(endpoints_file()))
    except (OSError, ValueError, RecursionError):  # none yet, or not ours: then nothing was named
        return []
    return [url for url in found if isinstance(url, str)] if isinstance(found, list) else []
