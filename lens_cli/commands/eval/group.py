"""`lens eval`: measure a model. `nano`, the small world's prompts with its verifier, and the commands of all suites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backend.errors import UsageError
from backend.types import ReasonerMode
from backend.wish import Wish
from lens_cli import options
from lens_cli.commands.eval import claims, suites

SCENES = 1000

app = typer.Typer(no_args_is_help=True, help="Measure models.")

Wording = Annotated[
    str, typer.Option("--prompts", help="brief, dense (40 to 110 words), or requests that need a reasoner.")
]
Images = Annotated[int, typer.Option("--images-per-prompt", min=1, max=999, help="Pictures of each prompt.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only so many prompts, from all kinds in turn.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, help="First seed; of the scenes with --prove-verifier.")]
Kinds = Annotated[list[str] | None, typer.Option("--kind", help="Only this kind of prompt. Repeatable.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for results and pictures; again, it goes on.")]
Sheet = Annotated[Path | None, typer.Option("--contact-sheet", help="Write all pictures with verdicts here (PNG).")]
Prove = Annotated[bool, typer.Option("--prove-verifier", help="Measure the verifier on drawn scenes; needs no model.")]
Reasoner = Annotated[
    ReasonerMode,
    typer.Option("--reasoner", help="Who rewrites each prompt first; refusals and unusable answers count as wrong."),
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Run without the reasoner as well; print the paired difference with its interval."),
]
Scenes = Annotated[
    int | None, typer.Option("--scenes", min=1, help="Scenes of --prove-verifier.", show_default=str(SCENES))
]
Degrade = Annotated[
    str | None,
    typer.Option(
        "--degrade", help="With --prove-verifier: softened, blurred, noisy, compressed, tinted, toned or wobbly."
    ),
]


@app.command("nano")
@options.takes_wish("eval", first=("model", "steps", "guidance", "base"))
def nano(
    *,
    wish: Wish,
    prompts: Wording = "brief",
    images_per_prompt: Images = 1,
    limit: Limit = None,
    kind: Kinds = None,
    seed: Seed = 0,
    reasoner: Reasoner = ReasonerMode.off,
    compare: Compare = False,
    out: Out = None,
    contact_sheet: Sheet = None,
    prove_verifier: Prove = False,
    scenes: Scenes = None,
    degrade: Degrade = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Generate 350 prompts, let a rule say which pictures are right, and print the scores.

    Examples: lens eval nano --limit 70 · lens eval nano --out eval/ --contact-sheet eval.png
    · lens eval nano --prompts requests --reasoner local --compare · lens eval nano --prove-verifier
    """
    from lens_cli.work.eval import EvalChoice, eval_nano  # light until it runs
    from lens_cli.work.eval import prove_verifier as prove

    talk = options.talk_for("eval nano", json=json, quiet=quiet)
    if prove_verifier:
        prove(scenes or SCENES, seed, degrade, talk)
        return
    if degrade is not None or scenes is not None:
        flag = "--degrade" if degrade is not None else "--scenes"
        raise UsageError(f"{flag} is of the verifier's proof, not of a model's pictures", hint="add --prove-verifier")
    if contact_sheet is not None and contact_sheet.suffix.lower() != ".png":
        raise UsageError(f"--contact-sheet {contact_sheet}: the sheet is a PNG", hint="a name that ends in .png")
    eval_nano(
        EvalChoice(
            wish=wish,
            wording=prompts,
            images_per_prompt=images_per_prompt,
            limit=limit,
            kinds=tuple(kind or ()),
            seed=seed,
            out=out,
            contact_sheet=contact_sheet,
            reasoner=reasoner,
            compare=compare,
        ),
        talk,
    )


suites.add_to(app)
app.command("claims")(claims.claims)
