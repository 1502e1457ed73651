"""`lens models pull`: the plan on stderr, then the download, then the folder on stdout."""

from __future__ import annotations

import sys
from pathlib import Path

from backend.checkpoints.resolve import resolve_model
from backend.errors import human_bytes
from lens_cli.terminal.console import Talk


def fetch(name: str, origin: str | None, talk: Talk, *, dry_run: bool, offline: bool, packed: bool = False) -> None:
    """Fetch a registry model from the first source that has it, from the repository `origin`, or quantised."""
    from backend.hub.downloads import check_disk, pull
    from backend.hub.pull_plan import plan_pull

    plan = plan_pull(name, origin=origin, packed=packed, offline=offline, say=talk.say)
    talk.say(f"source: {plan.provenance}")
    for part, licence in plan.preset.licences.items():
        talk.detail(f"licence: {part.value.replace('_', ' ')}: {licence}")
    for file in plan.files:
        have = "" if not file.have else " (here)" if file.have == file.size else f" ({human_bytes(file.have)} here)"
        talk.say(f"{human_bytes(file.size):>8}  {file.path}{have}")
    talk.say(
        f"{human_bytes(plan.total):>8}  in all, {human_bytes(plan.remaining)} to fetch; {human_bytes(plan.free)} free"
    )
    check_disk(plan)
    if not dry_run:
        pull(plan, say=talk.say, bars=not talk.quiet and sys.stderr is not None)
        talk.say(f"{plan.preset.name}: complete, every SHA-256 checked")
    talk.data(plan.folder)
    talk.result(
        {
            "name": plan.preset.name,
            "repo": plan.repo,
            "revision": plan.revision,
            "pinned": plan.pinned,
            "provenance": plan.provenance,
            "path": str(plan.folder),
            "total_bytes": plan.total,
            "fetched_bytes": 0 if dry_run else plan.remaining,
            "remaining_bytes": plan.remaining if dry_run else 0,
            "files": [{"path": f.path, "bytes": f.size, "sha256": f.sha256, "have": f.have} for f in plan.files],
        }
    )


def adopt(name: str, path: Path, talk: Talk, *, dry_run: bool) -> None:
    """Let `name` stand for files that are already on this disk."""
    from backend import presets
    from backend.hub import installed

    found = resolve_model(str(path), variant=presets.get(name).name)
    for part, file, size in found.files():
        talk.say(f"{human_bytes(size):>8}  {part:<12}  {file}")
    if not dry_run:
        talk.say("computing SHA-256 …")
        installed.adopt(name, path, say=talk.say)
        talk.say(f"{name} now stands for these files; nothing was copied")
    talk.data(found.folder)
    talk.result(
        {
            "name": presets.get(name).name,
            "repo": None,
            "revision": None,
            "path": str(found.folder),
            "total_bytes": found.total_bytes,
            "fetched_bytes": 0,
            "files": [{"path": str(file), "bytes": size, "component": part} for part, file, size in found.files()],
        }
    )
