"""`lens cache`: what is kept on this disk to save time, and making it go away."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_cli import options

app = typer.Typer(no_args_is_help=True, help="Show and clear what is kept to save time.")

Names = Annotated[
    list[str] | None, typer.Argument(help="Names from `lens cache show`; none: all of them.", metavar="[NAME]...")
]


@app.command()
def show(json: options.Json = False) -> None:
    """Show every cache: its name, files, bytes, cap and folder.

    The caps are settings: embeddings_mb = 512 under \\[cache], or LENS_CACHE__EMBEDDINGS_MB. 0 keeps nothing.
    """
    from backend.cache import store
    from backend.errors import human_bytes
    from backend.settings import load
    from lens_cli.terminal.wrap import say_rows

    talk = options.talk_for("cache show", json=json)
    settings = load()
    rows: list[dict[str, object]] = []
    for cache in store.CACHES:
        limit = store.limit_bytes(cache, settings.cache)
        found = store.entries(cache.folder(), cache.suffix)
        size = sum(entry.size for entry in found)
        cap = "" if limit is None else f" of {human_bytes(limit)}" if limit else " (off)"
        files = f"{len(found)} file{'' if len(found) == 1 else 's'}"
        say_rows(
            [f"{cache.name:<11} {files:>10}, {human_bytes(size)}{cap}: {cache.what} in {cache.folder()}"], 12, talk
        )
        rows.append(
            {
                "name": cache.name,
                "what": cache.what,
                "folder": str(cache.folder()),
                "files": len(found),
                "bytes": size,
                "limit_bytes": limit,
                "last_used": max((entry.used for entry in found), default=None),
            }
        )
    talk.result({"caches": rows})


@app.command()
def clear(names: Names = None, json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Remove what is kept; it is made again when it is needed.

    Examples: lens cache clear   ·   lens cache clear embeddings
    """
    from backend.cache import store
    from backend.errors import human_bytes

    talk = options.talk_for("cache clear", json=json, quiet=quiet)
    rows: list[dict[str, object]] = []
    for cache in store.named(names or []):
        count, freed = store.clear(cache)
        talk.say(f"{cache.name}: {count} file{'' if count == 1 else 's'} removed, {human_bytes(freed)} freed")
        rows.append({"name": cache.name, "files": count, "bytes": freed})
    talk.result({"caches": rows})
