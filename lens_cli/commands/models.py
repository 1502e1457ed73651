"""`lens models`: what there is, what is on this disk, fetching, checking, removing. stdout is data, stderr is talk."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from backend.errors import UsageError
from backend.packing.schemes import Container, targets_in
from backend.paths import expanded
from backend.types import QuantTarget
from lens_cli import options

app = typer.Typer(no_args_is_help=True, help="List, fetch, check, quantize and remove models.")


TARGETS = (
    f"GGUF: {', '.join(targets_in(Container.gguf))}. "
    f"Safetensors: {', '.join(targets_in(Container.comfyui, Container.diffusers))}."
)


class ModulationPrecision(StrEnum):
    """What becomes of the modulation when a model is quantised."""

    bf16 = "bf16"
    same = "same"


Name = Annotated[
    str,
    typer.Argument(help="A name from `lens models list`.", metavar="NAME", autocompletion=options.complete_model),
]
NameOrPath = Annotated[
    str,
    typer.Argument(
        help="A name from `lens models list`, or a path.", metavar="NAME|PATH", autocompletion=options.complete_model
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this, only show what would be done.")]
From = Annotated[
    str | None,
    typer.Option(
        "--from", help="A folder or file that is already here (nothing is copied), or OWNER/NAME\\[@REVISION]."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Packed = Annotated[
    bool,
    typer.Option("--packed", help="Fetch the quantised file that is published: smaller, and rounded."),
]
PullDryRun = Annotated[bool, typer.Option("--dry-run", help="Show files and sizes, and stop.")]
Quick = Annotated[bool, typer.Option("--quick", help="Sizes and headers only; no SHA-256.")]


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List every model: name, state, bytes here or to fetch, the smallest card for it, steps, what it is.

    `lens models show NAME` says for each kind of card what would lie where, and about how fast it would be.

    Example: lens models list --json | jq '.data.models[].name'
    """
    from lens_cli.work.models.rows import HEADER, listing

    talk = options.talk_for("models list", json=json)
    rows = listing()
    talk.heading(HEADER)
    for row in rows:
        talk.data(row.text)
    talk.result({"models": [row.data for row in rows]})


@app.command()
def show(name: NameOrPath, json: options.Json = False) -> None:
    """Show a model's defaults, sizes, licences, sources and files, and which cards it would run on.

    Example: lens models show lens-turbo
    """
    from lens_cli.terminal.wrap import say_rows
    from lens_cli.work.models.rows import LABEL, details

    talk = options.talk_for("models show", json=json)
    lines, data = details(name)
    say_rows(lines, LABEL, talk)
    talk.result(data)


@app.command()
def path(name: NameOrPath, json: options.Json = False) -> None:
    """Print the folder a model's files are in. Exit code 5 where it is not on this disk.

    Example: du -shL "$(lens models path lens)"
    """
    from backend.checkpoints.resolve import resolve_model

    talk = options.talk_for("models path", json=json)
    found = resolve_model(name)
    talk.data(found.folder)
    talk.result({"name": found.name, "path": str(found.folder), "files": [str(file) for _, file, _ in found.files()]})


@app.command()
def pull(
    name: Name,
    origin: From = None,
    packed: Packed = False,
    dry_run: PullDryRun = False,
    offline: Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a model, or adopt one that is already on this disk. Interrupted, the same command goes on.

    Sizes are shown and the free disk is checked before the first byte; every SHA-256 is checked afterwards.

    Examples: lens models pull lens   ·   lens models pull lens-turbo --from ~/comfy/diffusion_models/turbo.safetensors
    """
    from lens_cli.work.models import pull

    talk = options.talk_for("models pull", json=json, quiet=quiet)
    if origin is not None and packed:
        raise UsageError("--from and --packed each name the files", hint="give one of them")
    if origin is not None and expanded(origin).exists():
        pull.adopt(name, expanded(origin), talk, dry_run=dry_run)
    else:
        pull.fetch(name, origin, talk, dry_run=dry_run, offline=offline, packed=packed)


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names or paths; none: all that are here.",
            metavar="[NAME|PATH]...",
            autocompletion=options.complete_model,
        ),
    ] = None,
    quick: Quick = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check size, header and SHA-256 of every file. Exit code 1 where one is bad, 8 where only some models could be.

    Example: lens models verify lens --quick
    """
    from lens_cli.work.models.verify import verify_all

    verify_all(names or [], options.talk_for("models verify", json=json, quiet=quiet), quick=quick)


@app.command()
def quantize(
    source: Annotated[
        str,
        typer.Argument(
            help="A name from `lens models list`, or a path.", metavar="SRC", autocompletion=options.complete_model
        ),
    ],
    to: Annotated[QuantTarget, typer.Option("--to", help=TARGETS)],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR|FILE", help="Where to; the name ends in the file format's.")
    ],
    modulation: Annotated[
        ModulationPrecision,
        typer.Option("--modulation", help="bf16 keeps it; same quantises it too, which is reported to break 4 bits."),
    ] = ModulationPrecision.bf16,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a smaller file of a model's transformer, for `lens gen -m` and for other programs.

    Only the blocks' attention and MLP are quantised; the rest is bfloat16. Encoder and autoencoder stay where they are.

    Examples: lens models quantize lens --to q4_k -o lens-q4_K.gguf   ·   lens models quantize nano --to mxfp8 -o small/
    """
    from lens_cli.work.models.quantize import quantize as write

    talk = options.talk_for("models quantize", json=json, quiet=quiet)
    write(source, to, output, talk, modulation=modulation is ModulationPrecision.same, force=force)


@app.command()
def rm(name: Name, yes: Yes = False, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Remove a pulled model from the disk. Without --yes it only shows what would go.

    Files that another model here uses stay, and so does what was adopted with --from PATH.
    """
    from backend.errors import human_bytes
    from backend.hub.installed import plan_removal, remove

    talk = options.talk_for("models rm", json=json, quiet=quiet)
    removal = plan_removal(name)
    for file, size in removal.blobs:
        talk.data(f"{human_bytes(size):>8}  {file}")
    for file, other in removal.kept:
        talk.say(f"stays, {other} uses it: {file}")
    if removal.note:
        talk.say(removal.note)
    if yes:
        remove(removal)
    freed = human_bytes(removal.total)
    talk.say(f"{removal.name}: {freed} freed" if yes else f"{removal.name}: {freed} would be freed; --yes does it")
    talk.result(
        {
            "name": removal.name,
            "removed": yes,
            "bytes": removal.total,
            "files": [str(file) for file in removal.links],
            "kept": {str(file): other for file, other in removal.kept},
            "note": removal.note,
        }
    )
