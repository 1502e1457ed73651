"""`lens train rl prompts` behind its flags: write a set, check it, count it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from backend.errors import FileError, UsageError
from lens_cli.terminal.console import Talk
from prompts.taxonomies import load_taxonomy
from train.rl.prompts import checks, pilot
from train.rl.prompts import prompt_set as files
from train.rl.prompts.expand import ExpandSettings, expand
from train.rl.prompts.writer import Message, Writer


def write(
    out: Path, to: int, seed: int, model: str | None, base_url: str | None, calls: int | None, talk: Talk
) -> None:  # fmt: skip
    """Make a set; its path on stdout. Raises LensError."""
    writer = None if model is None else _writer(model, base_url, out, talk)
    if writer is None and base_url is not None:
        raise UsageError("--base-url is for a --writer, and none was named")
    made = expand(load_taxonomy(), ExpandSettings(to=to, seed=seed, calls=calls), writer)
    if made.prompts.prompts:
        files.write(out, made.prompts)
        talk.data(out)
    talk.say(f"{len(made.prompts.prompts):,} prompts, {len(made.dropped):,} draws left out, {made.asked:,} questions")
    if made.stopped is not None:
        talk.warn(f"fewer than {to:,}: {made.stopped}")
    counts = {"prompts": len(made.prompts.prompts), "dropped": len(made.dropped), "asked": made.asked}
    talk.result({"path": str(out), **counts, "stopped": made.stopped})


def _writer(model: str, base_url: str | None, out: Path, talk: Talk) -> Writer:
    from backend.chat.address import Label, make_address
    from backend.chat.client import Client
    from backend.reasoner.address import setting_label
    from backend.settings import load

    reasoner = load().reasoner
    url = base_url or reasoner.base_url
    if not url:
        raise UsageError("no endpoint was named for the writer", hint="--base-url http://127.0.0.1:8000/v1")
    labels = {name: setting_label(name) for name in ("timeout", "max_tokens")}
    labels |= {"base_url": Label("--base-url", "--base-url"), "model": Label("--writer", "--writer")}
    address = make_address(
        url, model, key=reasoner.api_key, timeout=reasoner.timeout, max_tokens=4096,
        labels={**labels, "key": setting_label("api_key")},
    )  # fmt: skip
    client = Client(address, say=talk.detail)

    def ask(messages: list[Message]) -> str:
        return client.complete(messages).text

    return Writer(name=model, ask=ask, journal=out.with_name(f"{out.name}.answers"))


def check(file: Path, verdicts: Path | None, out: Path | None, talk: Talk) -> None:
    """Findings on stdout, a line each. Raises FileError where there are any."""
    if out is not None and verdicts is None:
        raise UsageError("--out writes what --verdicts leaves of the set, and no verdicts were given")
    prompts = files.read(file)
    findings = checks.check(prompts)
    for finding in findings:
        talk.data(f"{finding.where}, {finding.id}: {finding.what}")
    result: dict[str, object] = {"prompts": len(prompts.prompts), "findings": [asdict(one) for one in findings]}
    if verdicts is not None:
        result |= _pilot(prompts, verdicts, out, talk)
    talk.result(result)
    if findings:
        raise FileError(f"{file}: {len(findings):,} things are wrong", hint="mend or delete those lines")
    talk.say(f"{len(prompts.prompts):,} prompts, nothing wrong with them")


def _pilot(prompts: files.PromptSet, verdicts: Path, out: Path | None, talk: Talk) -> dict[str, object]:
    outcomes = pilot.judge_rubrics(prompts, pilot.read_verdicts(verdicts))
    dropped = [outcome for outcome in outcomes if outcome.why is not None]
    for outcome in dropped:
        talk.data(f"{outcome.prompt}: {outcome.rubric.text} dropped: {outcome.why}")
    left, bare = pilot.without_dropped(prompts, outcomes)
    talk.say(f"{len(outcomes):,} rubrics judged, {len(dropped):,} dropped; {len(bare):,} prompts have none left")
    if out is not None:
        files.write(out, left)
        talk.data(out)
    return {"judged": len(outcomes), "dropped": len(dropped), "bare": bare}


def stats(file: Path, talk: Talk) -> None:
    """The numbers on stdout."""
    found = checks.stats(files.read(file), load_taxonomy())
    for line in found.lines():
        talk.data(line)
    talk.result(asdict(found))
