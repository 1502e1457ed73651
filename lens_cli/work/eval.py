"""What `lens eval nano` does: generate, verify, report. stdout is the table, stderr is talk.

Light ring at module scope; torch, Pillow and the evaluation itself are imported where they are used.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.cache.store import Stores
from backend.errors import UsageError, counted
from backend.events import PictureFailed
from backend.presets import default_name
from backend.requests import build_request, check_prompt, find_model
from backend.session import Session
from backend.settings import load
from backend.types import ReasonerMode
from backend.wish import Wish
from lens_cli.terminal.console import Talk
from lens_cli.terminal.progress import say_remarks
from lens_cli.work.reasoner import AskedReasoner, ask_reasoner

if TYPE_CHECKING:
    from PIL import Image

    from backend.requests import ResolvedRequest
    from train.evals.nano import EvalFolder, EvalReport, EvalResult
    from train.evals.nano_prompts import NanoPrompt


@dataclass(frozen=True, kw_only=True)
class EvalChoice:
    """What was typed; None means "the model's default"."""

    wish: Wish  # of every picture: the model, and how it draws
    wording: str  # "brief", "dense" or "requests"
    images_per_prompt: int
    limit: int | None  # prompts; None: all
    kinds: tuple[str, ...]  # empty: all
    seed: int
    out: Path | None
    contact_sheet: Path | None
    reasoner: ReasonerMode  # off: prompts are drawn as they are
    compare: bool  # run without a reasoner as well, and give the difference


def prove_verifier(scenes: int, seed: int, degrade: str | None, talk: Talk) -> None:
    """Print how often the verifier is right on drawn scenes. Raises UsageError for an unknown degradation."""
    from train.evals.verifier.prove import DEGRADATIONS, prove

    if degrade is not None and degrade not in DEGRADATIONS:
        raise UsageError(f"no degradation is called {degrade!r}", hint=f"one of {', '.join(DEGRADATIONS)}")

    def progress(n: int) -> None:
        if n % 50 == 0 or n == scenes:
            talk.say(f"{n}/{scenes} scenes")

    proof = prove(scenes=scenes, seed=seed, degradation=degrade, on_scene=progress)
    for mistake in proof.mistakes:
        talk.say(f"mistake: scene {mistake}")
    for line in proof.table():
        talk.data(line)
    talk.say(f"{proof.seconds / scenes:.2f} s of processor time a picture")
    sides = {"yes": proof.yes, "no": proof.no}
    talk.result(
        {
            "scenes": scenes,
            "seed": seed,
            "degradation": degrade,
            **{
                name: {
                    row: {"rate": t.rate, "interval": list(t.interval), "right": t.right, "total": t.total}
                    for row, t in {**side, "all": proof.total(side)}.items()
                }
                for name, side in sides.items()
            },
        }
    )


def eval_nano(choice: EvalChoice, talk: Talk) -> None:
    """Evaluate one model. Raises UsageError, FileError and what the pipeline raises; finished results stay in --out."""
    from backend.disk import make_folder
    from train.evals import nano_prompts, nano_requests
    from train.evals.nano import EvalComparison
    from train.evals.verifier.verify import VERSION

    if choice.wording not in ("brief", "dense", "requests"):
        raise UsageError(f"--prompts {choice.wording!r} is none of brief, dense, requests")
    requests = choice.wording == "requests"
    try:
        chosen = (nano_requests.requests if requests else nano_prompts.prompts)(choice.kinds, choice.limit)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if choice.contact_sheet is not None:
        make_folder(choice.contact_sheet.absolute().parent)
    settings = load(talk.warn)
    found = find_model(choice.wish.model or settings.model or default_name())
    reasoner = ask_reasoner(settings, found, talk, mode=choice.reasoner, system_prompt=choice.wish.system_prompt)
    if choice.compare and reasoner.off:
        raise UsageError("--compare sets a reasoner against none", hint="add --reasoner local, or api")
    # What all pictures share but for prompt and seed.
    shared = replace(choice.wish, prompt=chosen[0].brief, seeds=(str(choice.seed),), ar="1:1")
    resolved = build_request(shared, settings, talk.warn, found=found)
    request = resolved.request
    what = {
        "prompts": choice.wording,
        "fingerprint": (nano_requests if requests else nano_prompts).fingerprint(),
        "verifier": VERSION,
        "seed": choice.seed,
        **_drawing_settings(resolved),
    }
    runs = [None, reasoner] if choice.compare else [None if reasoner.off else reasoner]
    asked_for = "requests" if requests else f"{choice.wording} prompts"
    title = f"{request.model}, {asked_for}, {counted(request.steps, 'step')}, guidance {request.guidance:g}"
    data: list[dict[str, Any]] = []
    reports: list[EvalReport] = []
    with Session(settings, stores=Stores()) as session:
        for asked in runs:
            name = "off" if asked is None else str(asked.plan.mode)
            mine = {**what, "reasoner": "off" if asked is None else _reasoner_settings(asked)}
            report = _one_run(choice, chosen, session, resolved, asked, mine, name, talk)
            talk.data(f"{title}, {request.width}x{request.height}, reasoner {name}")
            for line in report.table():
                talk.data(line)
            reports.append(report)
            data.append({"settings": mine, **report.data()})
    if choice.out is not None:
        talk.say(f"results and pictures: {choice.out}")
    if not choice.compare:
        talk.result(data[0])
        return
    comparison = EvalComparison.of(*reports)
    talk.data(f"difference: reasoner {reasoner.plan.mode} less off, same prompts and seeds")
    for line in comparison.table():
        talk.data(line)
    talk.result({"runs": data, "difference": comparison.data()})


def _drawing_settings(resolved: ResolvedRequest) -> dict[str, Any]:
    """What of a request decides the pictures, but for prompt and seed."""
    from backend.checkpoints.identity import identify_model

    request = resolved.request
    return {
        "model": request.model,
        "weights": identify_model(resolved.need_files()).sha256,  # a model that was trained on keeps its name
        "steps": request.steps,
        "guidance": request.guidance,
        "width": request.width,
        "height": request.height,
        "dtype": str(request.dtype),
        "sampler": str(request.sampler),
        "encoder": str(request.encoder),
        "quant": str(request.quant),
        "loras": [[use.sha256, use.scale] for use in request.loras],
        "negative_prompt": request.negative_prompt,
        **({} if request.rl_strength is None else {"rl_strength": request.rl_strength}),
    }


def _reasoner_settings(reasoner: AskedReasoner) -> dict[str, Any]:
    """What makes two evaluations with a reasoner comparable: all of its plan but why it was chosen."""
    return {key: value for key, value in reasoner.plan.data().items() if key != "why"}


def _one_run(
    choice: EvalChoice, chosen: Sequence[NanoPrompt], session: Session, resolved: ResolvedRequest,
    reasoner: AskedReasoner | None, settings: dict[str, Any], name: str, talk: Talk,
) -> EvalReport:  # fmt: skip
    """All prompts once, with or without a reasoner; of two runs each has a folder and a sheet of its own."""
    from train.evals.nano import EvalFolder, evaluate

    out, sheet = choice.out, choice.contact_sheet
    if choice.compare:
        out = out / name if out is not None else None
        sheet = sheet.with_name(f"{sheet.stem}-{name}{sheet.suffix}") if sheet is not None else None
    folder = EvalFolder(out) if out is not None else None
    done = folder.open(settings) if folder is not None else []
    pictures: dict[tuple[str, int], Image.Image] = {}
    total = len(chosen) * choice.images_per_prompt
    wanted = {(prompt.id, i) for prompt in chosen for i in range(choice.images_per_prompt)}
    count = len([result for result in done if result.key in wanted])
    if count:
        talk.say(f"{count} of {total} pictures were judged before")

    def on_result(result: EvalResult, picture: Image.Image | None) -> None:
        nonlocal count
        count += 1
        if folder is not None:
            folder.add(result, picture)
        if sheet is not None and picture is not None:
            pictures[result.key] = picture
        talk.say(f"{count}/{total} {result.id} {'right' if result.right else 'wrong: ' + result.reason}")

    def generate(prompt: str, seed: int) -> Image.Image:
        """Raises what the engine does; a picture that fails too, as it has no verdict."""
        request = replace(resolved.request, prompt=check_prompt(prompt, "prompt"), seeds=(seed,))
        (made,) = session.draw(replace(resolved, request=request), on_event=lambda event: None)
        if isinstance(made, PictureFailed):
            raise made.error
        return made.image

    report = evaluate(
        generate,
        chosen,
        wording="brief" if choice.wording == "requests" else choice.wording,
        images_per_prompt=choice.images_per_prompt,
        seed=choice.seed,
        done=done,
        rewrite=None if reasoner is None else lambda asked: reasoner.prompt_for(session, asked, say_remarks(talk)),
        on_result=on_result,
    )
    if sheet is not None:
        _write_sheet(sheet, report, pictures, folder, talk)
    return report


def _write_sheet(
    path: Path, report: EvalReport, pictures: dict[tuple[str, int], Image.Image], folder: EvalFolder | None, talk: Talk
) -> None:
    from PIL import Image

    from backend.disk import write_atomic
    from train.evals.sheet import contact_sheet

    def picture_of(result: EvalResult) -> Image.Image:
        if result.key in pictures:
            return pictures[result.key]
        if result.unmade:
            return Image.new("RGB", (64, 64), (200, 200, 204))  # nothing was drawn; the reason stands below
        assert folder is not None, "a result is from this run or from the folder"
        with Image.open(folder.picture(result)) as image:
            return image.convert("RGB")

    stream = io.BytesIO()
    contact_sheet([(result, picture_of(result)) for result in report.results]).save(stream, "PNG")
    write_atomic(path, stream.getvalue())
    talk.say(f"contact sheet: {path}")
