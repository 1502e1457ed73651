"""What `lens refine` does: before and after on stderr, the rewrite on stdout; or the check on the probes."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from backend.errors import FileError
from backend.requests import check_prompt
from lens_cli.terminal.console import Talk, looking_at_stdout
from lens_cli.terminal.progress import Meter, say_remarks
from lens_cli.work.editor import editor_words, open_editor
from lens_cli.work.reasoner import AskedReasoner, refusal_data

if TYPE_CHECKING:
    from backend.server.remote import Draws
    from train.evals.refusals import RefusalVerdict


def refine(request: str, session: Draws, asked: AskedReasoner, talk: Talk, *, edit: bool) -> None:
    """One request. Raises typer.Exit(7) for a refusal, and as `AskedReasoner.decide`."""
    from backend.reasoner.refine import Refused

    request = check_prompt(request, "request")
    if edit:
        editor_words()
    with Meter(talk=talk, total=1) as meter:
        decision = asked.decide(session, request, meter)
    talk.say(f"before: {decision.original}")
    if isinstance(decision, Refused):
        error = decision.error()
        talk.fail(error, {**refusal_data(error, asked.plan), "request": request, "cached": decision.cached})
        raise typer.Exit(error.exit_code)
    again = ", as before" if decision.cached else ""
    # On a terminal the rewrite stands there once: on stdout.
    told = "" if looking_at_stdout() and not (edit or talk.json) else f" {decision.prompt}"
    talk.say(f"after, by {asked.who}{again}:{told}")
    revised = edited(decision.prompt) if edit else decision.prompt
    talk.data(revised)
    talk.result(
        {
            "decision": "rewrite",
            "rule": None,
            "request": request,
            "revised": revised,
            "edited": revised != decision.prompt,
            "cached": decision.cached,
            "notes": list(decision.notes),
            "reasoner": asked.plan.data(),
            "expander": asdict(decision.expander),
        }
    )


def check(session: Draws, asked: AskedReasoner, talk: Talk) -> None:
    """Ask about every probe and print the rates."""
    import prompts
    from train.evals import refusals

    probes = prompts.probes()
    done = 0

    def on_verdict(verdict: RefusalVerdict) -> None:
        nonlocal done
        done += 1
        if not verdict.right:
            wanted = "rewrite" if verdict.probe.allowed else f"refuse ({verdict.probe.rule})"
            talk.say(f"{verdict.probe.request!r}: {verdict.decision} ({verdict.said}), wanted {wanted}")
        if done % 10 == 0:
            talk.say(f"{done}/{len(probes)}")

    report = refusals.check(lambda request: asked.decide(session, request, say_remarks(talk)), probes, on_verdict)
    talk.data(f"{asked.who}, system prompt {asked.plan.system.name}: {len(probes)} requests")
    for line in report.table():
        talk.data(line)
    talk.result({"reasoner": asked.plan.data(), **report.data()})


def edited(text: str) -> str:
    """`text` after a person has edited it. Raises UsageError for an editor that failed or an emptied file."""
    with tempfile.TemporaryDirectory(prefix="lens-") as folder:
        path = Path(folder) / "prompt.txt"
        path.write_text(text + "\n", "utf-8")
        open_editor(path)
        try:
            return check_prompt(path.read_text("utf-8"), "edited prompt")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read what was saved: {error}") from error
