"""`lens models verify`: one line per file on stdout, the verdict on stderr."""

from __future__ import annotations

from typing import Any

import typer

from backend import presets
from backend.checkpoints.resolve import of_preset
from backend.errors import CheckpointError, LensError, ModelMissingError, PartialBatchError, human_bytes
from backend.hub.installed import verify
from lens_cli.terminal.console import Talk


def verify_all(names: list[str], talk: Talk, *, quick: bool) -> None:
    """Check the named models, or every one that is here. All of them are looked at, whatever becomes of one.

    Raises typer.Exit: with 1 where a file is bad, 8 where only some of the models could be looked at, with its own
    error's code where none could be.
    """
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, LensError]] = []
    wanted = names or _present()
    for name in wanted:
        talk.say(f"{name}:")
        try:
            _verify(name, rows, talk, quick=quick)
        except LensError as error:
            failed.append((name, error))
            if len(wanted) > 1:
                talk.warn(str(error))
    if error := _verdict(rows, failed, len(wanted)):
        unseen = [{"model": name, "code": cause.code, "message": str(cause)} for name, cause in failed]
        talk.fail(error, {"files": rows, "failed": unseen} if rows else None)
        raise typer.Exit(error.exit_code)
    unknown = sum(row["against"] == "nothing known" for row in rows)
    note = f"; {unknown} without a published hash to compare with" if unknown and not quick else ""
    talk.say(f"{len(rows)} files are good{note}")
    talk.result({"files": rows, "failed": []})


def _verify(name: str, rows: list[dict[str, Any]], talk: Talk, *, quick: bool) -> None:
    """Add a row for every file of a model. Raises what `backend.hub.installed.verify` does."""
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


def _verdict(rows: list[dict[str, Any]], failed: list[tuple[str, LensError]], models: int) -> LensError | None:
    """The one error that decides the exit code; None: all files of all models are good."""
    bad = [row for row in rows if row["problem"]]
    if bad:
        first = bad[0]
        return CheckpointError(
            f"{len(bad)} of {len(rows)} files are bad; {first['path']} {first['problem']}",
            hint=f"fetch what is damaged again: lens models rm {first['model']} --yes, then lens models pull",
        )
    if failed and rows:
        cause = failed[0][1]
        return PartialBatchError(f"{len(failed)} of {models} models could not be checked: {cause}", hint=cause.hint)
    return failed[0][1] if failed else None


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
