"""`lens eval claims`: the paper's claims in miniature, measured with Lens-Nano."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lens_cli import options


def claims(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures; again, it goes on.")] = Path(
        "runs/claims"
    ),
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="The table, Markdown, with its numbers beside it as .json \\[default: OUT/evidence.md]"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=7, help="So many prompts of 350, of all kinds.")] = None,
    claim: Annotated[
        list[str] | None,
        typer.Option("--claim", help="Only this one; the other rows stay while they hold. Repeatable."),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="ROLE=PATH",
            help="Weights or a prompt that are not where they are looked for: base, turbo, rl, rl-half, rl-quarter, "
            "rl-no-text (a model or a LoRA), first-prompt, searched-prompt. Repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="First seed.")] = 0,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the paper's claims with Lens-Nano: each with its interval, and shown, not shown or the opposite.

    About three hours on two cores; stopped, the same command goes on. What has no weights here says so.
    Examples: lens eval claims --dry-run · lens eval claims --limit 70 · lens eval claims --with turbo=runs/turbo/model
    """
    from lens_cli.work.suites.claims import ClaimsChoice, check_claims

    choice = ClaimsChoice(
        out=out, to=to, limit=limit, claims=tuple(claim or ()), given=tuple(with_ or ()), seed=seed, dry_run=dry_run
    )
    check_claims(choice, options.talk_for("eval claims", json=json, quiet=quiet))
