"""`lens models verify`: one line per file on stdout, the verdict on stderr."""

from __future__ import annotations

from typing import Any

from backend import presets
from backend.errors import CheckpointError, ModelMissingError
from backend.stored import verify
from backend.weights import of_preset
from lens_cli.console import Talk, human_bytes


def verify_all(names: list[str], talk: Talk, *, quick: bool) -> None:
    """Check the named models, or every one that is here. Raises CheckpointError where a file is bad."""
    rows: list[dict[str, Any]] = []
    for name in names or _present():
        talk.say(f"{name}:")
        for check in verify(name, quick=quick):
            verdict = check.problem or ("ok" if check.sha256 is None or check.against != "nothing known" else "whole")
            talk.data(f"{verdict}\t{human_bytes(check.size)}\t{check.path}")
            rows.append(
                {
                    "model": name,
                    "path": str(check.path),
                    "bytes": check.size,
                    "sha256": check.sha256,
                    "against": check.against,
                    "problem": check.problem,
                }
            )
    bad = [row for row in rows if row["problem"]]
    if bad:
        first = bad[0]
        raise CheckpointError(
            f"{len(bad)} of {len(rows)} files are bad; {first['path']} {first['problem']}",
            hint=f"fetch what is damaged again: lens models rm {first['model']} --yes, then lens models pull",
        )
    unknown = sum(row["against"] == "nothing known" for row in rows)
    note = f"; {unknown} without a published hash to compare with" if unknown and not quick else ""
    talk.say(f"{len(rows)} files are good{note}")
    talk.result({"files": rows})


def _present() -> list[str]:
    """Every registry model that is on this disk; a damaged one counts, so that it is reported."""
    found: list[str] = []
    for name in presets.names():
        try:
            of_preset(presets.get(name))
        except ModelMissingError:
            continue
        except CheckpointError:
            pass
        found.append(name)
    if not found:
        raise ModelMissingError("no model is on this disk", hint="lens models pull lens")
    return found
