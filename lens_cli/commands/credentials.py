"""`lens credentials`: a key of this machine that signs pictures, so that a checker sees whether a file is unchanged."""

from __future__ import annotations

from typing import Annotated

import typer

from lens_cli import options

app = typer.Typer(no_args_is_help=True, help="Make the key that signs pictures (C2PA), and show it.")


@app.command()
def init(
    name: Annotated[
        str, typer.Option("--name", help="What the certificate calls its holder; everybody can read it.")
    ] = "lens user",
    again: Annotated[bool, typer.Option("--again", help="Make new ones in place of those that are there.")] = False,
    json: options.Json = False,
) -> None:
    """Make a key and a certificate on this machine; `lens gen --credentials` then signs what it saves.

    They are self-signed: a checker learns that the picture is unchanged since this key signed it, not who you are, and
    says that nobody vouches for the signer. The key stays on this disk.
    """
    from backend.picture.credentials import make_credentials

    talk = options.talk_for("credentials init", json=json)
    path = make_credentials(name, again=again)
    talk.data(path)
    talk.say("self-signed: whoever checks a picture learns that it is unchanged, not who signed it")
    talk.say("sign a run with --credentials, or every one with the setting output.credentials = true")
    talk.result({"certificate": str(path), "name": name, "self_signed": True})


@app.command()
def show(json: options.Json = False) -> None:
    """Show where the certificate lies, if there is one."""
    from backend.errors import UsageError
    from backend.picture.credentials import CHAIN, credentials_dir, has_credentials

    talk = options.talk_for("credentials show", json=json)
    if not has_credentials():
        raise UsageError("there are no credentials", hint="make them: lens credentials init")
    talk.data(credentials_dir() / CHAIN)
    talk.result({"certificate": str(credentials_dir() / CHAIN)})
