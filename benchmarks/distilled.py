"""What a distilled Lens-Nano is worth: right pictures, diversity, sharpness, seconds, against the model it came from.

    python -m benchmarks.distilled --student RUN/lora.safetensors [--teacher-lora RL] [--warm LORA] --out DIR

Every setting draws the prompts of `lens eval nano` from the same seeds, so that differences are paired. Settings are
folders of --out: a run that is broken off goes on, and a second student shares the teacher's pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from backend.disk import write_atomic
from backend.events import PictureFailed
from backend.requests import build_request, find_model
from backend.session import Session
from backend.settings import load
from backend.types import Phase
from backend.wish import Wish
from train.evals.nano import EvalComparison, EvalFolder, EvalReport, EvalResult, evaluate
from train.evals.nano_prompts import NanoPrompt, fingerprint, prompts
from train.evals.verifier.verify import VERSION
from train.rl.numbers import look

SIDE = 64  # pixels to which pictures are reduced before their distance is taken


@dataclass(frozen=True)
class Setting:
    """One way to draw."""

    name: str
    lora: str | None
    steps: int | None  # None: as the model is served
    guidance: float | None


def settings(student: str, teacher: str | None, warm: str | None) -> list[Setting]:
    """The first is what all others are compared with."""
    out = [Setting("teacher as served", teacher, None, None)]
    for steps in (4, 2, 1):
        out += [
            Setting(f"student {steps}", student, steps, 1.0),
            Setting(f"teacher {steps} guided", teacher, steps, None),
            Setting(f"teacher {steps} at 1", teacher, steps, 1.0),
        ]
        if warm is not None:
            out.append(Setting(f"warm alone {steps}", warm, steps, 1.0))
    return out


def draw(
    setting: Setting, args: argparse.Namespace, chosen: Sequence[NanoPrompt], folder: EvalFolder
) -> tuple[EvalReport, list[float]]:
    """All pictures of a setting, judged, and the seconds that denoising took of those that were not there already."""
    stated = load(lambda text: print(text))
    found = find_model(args.model)
    loras = (f"{setting.lora}=1",) if setting.lora is not None else ()
    wish = Wish(
        prompt=chosen[0].brief, model=args.model, seeds=("0",), ar="1:1", steps=setting.steps,
        guidance=setting.guidance, loras=loras,
    )  # fmt: skip
    resolved = build_request(wish, stated, print, found=found)
    request = resolved.request
    about = {
        "model": request.model, "loras": [use.sha256 for use in request.loras], "steps": request.steps,
        "guidance": request.guidance, "fingerprint": fingerprint(), "verifier": VERSION,
    }  # fmt: skip
    done = folder.open(about)
    denoising: list[float] = []
    with Session(stated) as session:

        def generate(prompt: str, seed: int) -> Image.Image:
            asked = replace(resolved.request, prompt=prompt, seeds=(seed,))
            (made,) = session.draw(replace(resolved, request=asked), on_event=lambda event: None)
            if isinstance(made, PictureFailed):
                raise made.error
            denoising.append(made.timings[Phase.denoise])
            return made.image

        def keep(result: EvalResult, picture: Image.Image | None) -> None:
            folder.add(result, picture)

        report = evaluate(generate, chosen, images_per_prompt=args.images, done=done, on_result=keep)
    return report, denoising


def looks(folder: EvalFolder, report: EvalReport) -> tuple[float, float]:
    """(mean distance of two pictures of a prompt, mean edge contrast); a distance of nan where each has one picture."""
    by_prompt: dict[str, list[np.ndarray]] = {}
    edges: list[float] = []
    for result in report.results:
        with Image.open(folder.picture(result)) as picture:
            edges.append(look(picture)[0])
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
            by_prompt.setdefault(result.id, []).append(np.asarray(small, dtype=np.float64) / 255)
    each: list[float] = []
    for pictures in by_prompt.values():
        pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
        each += [float(np.sqrt(np.square(a - b).mean())) for a, b in pairs]
    return (sum(each) / len(each) if each else float("nan")), sum(edges) / len(edges)


def main() -> None:
    """Draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="adapter of `lens train distill`")
    parser.add_argument("--teacher-lora", default=None, help="what the student started from")
    parser.add_argument("--warm", default=None, help="adapter of the warm stage alone: RUN/steps/lora-….safetensors")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--limit", type=int, default=None, help="prompts, from all kinds in turn; all 350 left out")
    parser.add_argument("--images", type=int, default=3, help="seeds of each prompt")
    parser.add_argument("--only", action="append", default=[], help="settings whose name begins so; repeatable")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chosen = prompts((), args.limit)
    rows: list[dict[str, object]] = []
    first: EvalReport | None = None
    spread = edge = seconds = 1.0
    for setting in settings(args.student, args.teacher_lora, args.warm):
        compared = first is not None
        if compared and args.only and not any(setting.name.startswith(name) for name in args.only):
            continue
        folder = EvalFolder(args.out / setting.name.replace(" ", "-"))
        report, denoising = draw(setting, args, chosen, folder)
        diversity, sharp = looks(folder, report)
        took = median(result.seconds for result in report.results)
        if first is None:
            first, spread, edge, seconds = report, diversity, sharp, took
        low, high = report.overall_interval
        difference, (least, most) = EvalComparison.of(first, report).overall
        row = {
            "setting": setting.name, "overall": report.overall, "interval": [low, high], "difference": difference,
            "difference_interval": [least, most], "diversity": diversity, "diversity_ratio": diversity / spread,
            "edge_contrast": sharp, "edge_ratio": sharp / edge, "seconds": took, "faster": seconds / took,
            "seconds_denoising": median(denoising) if denoising else None,
            "kinds": EvalComparison.of(first, report).data()["kinds"], "pictures": len(report.results),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{setting.name:<18} {report.overall:.3f} [{low:.3f}, {high:.3f}]  {difference:+.3f} [{least:+.3f}, "
            f"{most:+.3f}]  diversity {diversity / spread:.2f}  edges {sharp / edge:.2f}  {took:.2f} s"
            + (f", {median(denoising):.2f} s of it denoising" if denoising else ""),
            flush=True,
        )
        write_atomic(args.out / "distilled.json", json.dumps(rows, indent=1).encode())
    print(f"{len(chosen)} prompts x {args.images}; difference to the first line, same seeds; 95 % intervals")


if __name__ == "__main__":
    main()
