"""What was found of the claims, as a file: claims are measured one at a time, and a row says what it was drawn with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from backend.disk import read_error, write_atomic
from backend.errors import FileError
from backend.foreign import documents
from train.suites.claims import CLAIMS, UNMEASURED, Finding, page, recorded_finding, verdict_of

FORMAT = 1
COMMON = ("verifier", "seed", "dtype")  # settings that all arms of one table share

# An arm's name -> what it was drawn with.
Arms = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured claim and the settings of its two arms."""

    finding: Finding
    arms: Arms


def read_rows(path: Path) -> dict[str, Row]:
    """Every measured claim of the file by its id; none where there is no file. Raises FileError."""
    if not path.exists():
        return {}
    try:
        found = documents.parse_json(documents.read_bytes(path, 1 << 22))
        if not isinstance(found, dict):
            raise ValueError("no object")
        whole = cast("dict[str, Any]", found)
        if whole.get("format") != FORMAT:
            raise FileError(f"{path} has format {whole.get('format')!r}; this version of lens reads {FORMAT}")
        rows = {claim.id: whole["claims"][claim.id] for claim in CLAIMS if claim.id in whole["claims"]}
        return {name: Row(finding=_finding(name, row), arms=dict(row["arms"])) for name, row in rows.items()}
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, TypeError, KeyError) as error:
        raise FileError(f"{path} is damaged: {error}", hint="delete it, or write the table elsewhere: --to") from error


def _finding(name: str, row: Mapping[str, Any]) -> Finding:
    """A row of the file with the claim as it is worded now. Raises KeyError, TypeError, ValueError."""
    (claim,) = (claim for claim in CLAIMS if claim.id == name)
    low, high = (float(end) for end in row["interval"])
    return Finding(
        claim=claim, verdict=verdict_of(claim, (low, high)), before=float(row["before"]), after=float(row["after"]),
        difference=float(row["difference"]), interval=(low, high), pairs=int(row["pairs"]),
    )  # fmt: skip


def write_rows(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the measured claims. Raises FileError."""
    claims = {
        name: {**{key: value for key, value in row.finding.data().items() if key in _KEPT}, "arms": row.arms}
        for name, row in rows.items()
    }
    write_atomic(path, json.dumps({"format": FORMAT, "claims": claims}, indent=1).encode())


_KEPT = ("before", "after", "difference", "interval", "pairs")


def still_true(rows: Mapping[str, Row], arms: Arms) -> dict[str, Row]:
    """The rows that may stand beside what was drawn with `arms`: no arm of theirs is drawn otherwise by now."""
    return {name: row for name, row in rows.items() if all(_agree(row.arms, arms, own) for own in row.arms)}


def _agree(old: Arms, new: Arms, name: str) -> bool:
    if name in new and dict(new[name]) != dict(old[name]):
        return False
    return all(old[name].get(key) == arm.get(key) for arm in new.values() for key in COMMON)


def evidence(rows: Mapping[str, Row], lacking: Mapping[str, str]) -> str:
    """The table as Markdown. `lacking`: by a claim's id, what is not here to measure it with."""
    findings = [
        rows[claim.id].finding if claim.id in rows
        else recorded_finding(claim) if claim.recorded is not None
        else Finding(claim=claim, verdict=UNMEASURED, why=lacking.get(claim.id, ""))
        for claim in CLAIMS
    ]  # fmt: skip
    return page(findings, about=_about([row.arms for row in rows.values()]))


def _about(rows: Iterable[Arms]) -> list[str]:
    """Lines on what was measured and how."""
    arms = {name: arm for row in rows for name, arm in row.items()}
    lines = list[str]()
    if arms:
        one = arms.get("nano", next(iter(arms.values())))
        lines.append(
            f"Verifier {one['verifier']}, first seed {one['seed']}, arithmetic {one['dtype']}; one picture of each "
            "prompt unless a row says otherwise."
        )
        lines.append(f"{one['width']}x{one['height']}, {one['steps']} steps, guidance {one['guidance']:g}, but for the "
                     "rows about these.")  # fmt: skip
        weights = {name: str(arm["weights"].get("transformer")) for name, arm in sorted(arms.items())}
        lines.append(f"Transformers (SHA-256): {_grouped(weights)}.")
        if loras := {
            name: " ".join(sha for sha, _ in arm["loras"]) for name, arm in sorted(arms.items()) if arm["loras"]
        }:
            lines.append(f"Adapters on them: {_grouped(loras)}.")
    lines.append(
        "Made by `lens eval claims --to FILE`, which goes on where it was stopped; FILE's .json has the settings."
    )
    return lines


def _grouped(hashes: Mapping[str, str]) -> str:
    """A hash's first digits and the arms that have it."""
    return "; ".join(
        f"{sha[:12]} {', '.join(name for name, its in hashes.items() if its == sha)}"
        for sha in dict.fromkeys(hashes.values())
    )
