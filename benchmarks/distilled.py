"""What a distilled Lens-Nano is worth: right pictures, diversity, sharpness, seconds, against the model it came from.

    python -m benchmarks.distilled --student RUN/lora.safetensors [--teacher-lora RL] [--warm LORA] --out DIR

Every setting draws the prompts of `lens eval nano` from the same seeds, so that differences are paired. Settings are
folders of --out: a run that is broken off goes on, and a second student shares the teacher's pictures. Several at
once in bfloat16, as `lens train rl measure` draws, whose folder of the teacher as it is served can be taken over
(--served); seconds are those of single pictures as `lens gen` makes them (--timed).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NoReturn

import torch

from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.disk import make_folder, write_atomic
from backend.events import PictureFailed
from backend.foreign import documents
from backend.loading import load_transformer, load_vae
from backend.lora.names import parse_lora
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.requests import build_request, find_model
from backend.session import Session
from backend.settings import load
from backend.types import LoraMode, LoraUse, Phase, Sampler
from backend.wish import Wish
from train.batches.texts import KeptTexts
from train.evals.nano import SETTINGS, EvalComparison, EvalFolder, evaluate
from train.evals.nano_prompts import NanoPrompt, fingerprint, prompts
from train.evals.verifier.verify import VERSION
from train.rl.measure import Measured, count, draw_judged
from train.rl.rollout import How
from train.run.network import choose_attention

CPU = torch.device("cpu")
COMPUTE = "bfloat16"


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


def measured(
    setting: Setting, folder: EvalFolder, files: ModelFiles, chosen: Sequence[NanoPrompt], texts: KeptTexts,
    vae: AutoencoderKLFlux2, images: int,
) -> Measured:  # fmt: skip
    """All pictures of a setting, judged."""
    use: LoraUse | None = None if setting.lora is None else parse_lora(setting.lora, LoraMode.fused)
    network = load_transformer(files, torch.float32, CPU, () if use is None else (use,))
    choose_attention(network, CPU)
    preset = files.preset
    how = How(
        steps=setting.steps or preset.steps, guidance=preset.guidance if setting.guidance is None else setting.guidance,
        at_once=images, compute=COMPUTE, sampler=Sampler.euler,
    )  # fmt: skip
    return draw_judged(folder, files, network, use, chosen, how, texts, vae, side=preset.default_base)


def taken_over(folder: EvalFolder, chosen: Sequence[NanoPrompt], images: int, files: ModelFiles) -> Measured:
    """What another run drew as the model is served. The weights are the caller's to know: it may have called the same
    ones a base and its adapter. Raises UsageError for other settings, ValueError where a picture is missing."""
    preset = files.preset
    stated = {
        "fingerprint": fingerprint(), "verifier": VERSION, "steps": preset.steps, "guidance": preset.guidance,
        "side": preset.default_base, "seed": 0, "compute": COMPUTE,
    }  # fmt: skip
    before = documents.parse_json(documents.read_bytes(folder.path / SETTINGS))
    folder.open(before | stated)

    def absent(words: str, seed: int) -> NoReturn:
        raise ValueError(f"{folder.path} has no picture of {words!r}, seed {seed}")

    return count(folder, evaluate(absent, chosen, images_per_prompt=images, done=folder.read()))


def seconds(setting: Setting, model: str, chosen: Sequence[NanoPrompt]) -> tuple[float, float]:
    """(median seconds of a picture, of its denoising), drawn one after the other with everything loaded."""
    stated = load(lambda text: print(text))
    loras = (f"{setting.lora}=1",) if setting.lora is not None else ()
    wish = Wish(
        prompt=chosen[0].brief, model=model, seeds=("0",), ar="1:1", steps=setting.steps, guidance=setting.guidance,
        loras=loras,
    )  # fmt: skip
    resolved = build_request(wish, stated, print, found=find_model(model))
    whole: list[float] = []
    denoising: list[float] = []
    with Session(stated) as session:
        for number, prompt in enumerate(chosen):
            asked = replace(resolved.request, prompt=prompt.brief, seeds=(number,))
            (made,) = session.draw(replace(resolved, request=asked), on_event=lambda event: None)
            if isinstance(made, PictureFailed):
                raise made.error
            if number:  # the first one loads
                whole.append(sum(made.timings.values()))
                denoising.append(made.timings[Phase.denoise])
    return median(whole), median(denoising)


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
    parser.add_argument("--served", type=Path, default=None, help="folder of the teacher as served, drawn already")
    parser.add_argument("--timed", type=int, default=8, help="pictures of which seconds are told; 0: none")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chosen, files = prompts((), args.limit), resolve_model(args.model)
    make_folder(args.out)
    texts = KeptTexts(args.out / "texts", files, CPU, print)
    texts.fill([prompt.brief for prompt in chosen])
    vae = load_vae(files, torch.float32, CPU)
    every = settings(args.student, args.teacher_lora, args.warm)
    rows: list[dict[str, object]] = []
    first: Measured | None = None
    for setting in every:
        if first is not None and args.only and not any(setting.name.startswith(name) for name in args.only):
            continue
        if first is None and args.served is not None:
            found = taken_over(EvalFolder(args.served), chosen, args.images, files)
        else:
            folder = EvalFolder(args.out / setting.name.replace(" ", "-"))
            found = measured(setting, folder, files, chosen, texts, vae, args.images)
        first = first or found
        low, high = found.report.overall_interval
        comparison = EvalComparison.of(first.report, found.report)
        difference, (least, most) = comparison.overall
        diversity = found.spread / first.spread if found.spread is not None and first.spread else None
        row = {
            "setting": setting.name, "overall": found.report.overall, "interval": [low, high],
            "difference": difference, "difference_interval": [least, most], "diversity_ratio": diversity,
            "edge_contrast": found.sharpness, "edge_ratio": found.sharpness / first.sharpness,
            "kinds": comparison.data()["kinds"], "pictures": len(found.report.results),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{setting.name:<18} {found.report.overall:.3f} [{low:.3f}, {high:.3f}]  {difference:+.3f} [{least:+.3f}, "
            f"{most:+.3f}]  edges {found.sharpness / first.sharpness:.2f}"
            + ("" if diversity is None else f"  diversity {diversity:.2f}"),
            flush=True,
        )
        write_atomic(args.out / "distilled.json", json.dumps(rows, indent=1).encode())
    print(f"{len(chosen)} prompts x {args.images}; difference to the first line, same seeds; 95 % intervals")
    if args.timed:
        some = chosen[: args.timed + 1]
        (slow, slow_steps), (fast, fast_steps) = (seconds(one, args.model, some) for one in every[:2])
        print(
            f"seconds a picture: {slow:.2f} -> {fast:.2f}, {slow / fast:.1f} times as fast; denoising {slow_steps:.2f} "
            f"-> {fast_steps:.2f}, {slow_steps / fast_steps:.1f} times"
        )


if __name__ == "__main__":
    main()
