"""What another decoder changes of a model's verdicts: the same latents, decoded by both and judged in pairs.

    python -m benchmarks.decoder_change BEFORE.safetensors [-m nano] --out runs/decoder-change

Draws the prompts of `lens eval nano` as the model is served, in bfloat16 as `lens train rl measure` does, decodes each
latent with the model's own decoder and with that of BEFORE, and prints the difference of the scores with its interval.
Goes on where it was broken off. The encoder of BEFORE must be the model's: its latents are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from backend import pipeline
from backend.checkpoints import formats
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.disk import file_sha256, make_folder
from backend.loading import fill_vae, load_transformer, load_vae
from backend.model.autoencoder import AutoencoderKLFlux2
from backend.types import Sampler
from train.batches.texts import KeptTexts
from train.evals.nano import EvalComparison, EvalFolder, EvalReport, evaluate, seed_of
from train.evals.nano_prompts import NanoPrompt, fingerprint, prompts
from train.evals.verifier.verify import VERSION
from train.rl.rollout import How, draw, grid_of
from train.run.network import choose_attention

CPU = torch.device("cpu")


def main() -> None:
    """Draw, decode twice, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the autoencoder to compare with")
    parser.add_argument("-m", "--model", default="nano")
    parser.add_argument("--limit", type=int, default=None, help="prompts, from all kinds in turn; all 350 left out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chosen, files = prompts((), args.limit), resolve_model(args.model)
    make_folder(args.out / "latents")
    latent_of = _latents(files, chosen, args.out)
    params = files.preset.params.vae
    table = formats.open_vae([args.before], len(params.block_out_channels))
    before = fill_vae(table, params, torch.float32, CPU)
    sides = (("before", args.before, before), ("after", files.vae[0], load_vae(files, torch.float32, CPU)))
    reports: list[EvalReport] = []
    for name, path, vae in sides:
        settings = {"vae": file_sha256(path), "model": files.name, "fingerprint": fingerprint(), "verifier": VERSION}
        folder = EvalFolder(args.out / name)
        done = folder.open(settings)
        reports.append(evaluate(_decoded(vae, latent_of, files), chosen, done=done, on_result=folder.add))
        print(f"{name:<8}{reports[-1].overall:.3f}  {path}")
    for line in EvalComparison.of(*reports).table():
        print(line)
    first, second = (EvalFolder(args.out / name) for name in ("before", "after"))
    each = [
        _psnr(first.picture(one), second.picture(two)) for one, two in zip(*(r.results for r in reports), strict=True)
    ]
    print(f"PSNR of one to the other: median {np.median(each):.1f} dB, least {min(each):.1f}")


def _latents(files: ModelFiles, chosen: tuple[NanoPrompt, ...], out: Path) -> Callable[[str, int], Tensor]:
    """A function from a prompt and its seed to what the model draws of them, kept in files."""
    texts = KeptTexts(out / "texts", files, CPU, print)
    texts.fill([prompt.brief for prompt in chosen])
    network = load_transformer(files, torch.float32, CPU)
    choose_attention(network, CPU)
    preset = files.preset
    how = How(steps=preset.steps, guidance=preset.guidance, at_once=1, compute="bfloat16", sampler=Sampler.euler)
    grid = grid_of((preset.default_base, preset.default_base))
    ids = {seed_of(prompt, 0, 0): prompt.id for prompt in chosen}

    def latent_of(words: str, seed: int) -> Tensor:
        path = out / "latents" / f"{ids[seed]}.safetensors"
        if not path.exists():
            drawn = draw(network, texts.read([words])[0], grid, [seed], how)
            save_file({"latent": drawn}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        return load_file(path)["latent"]

    return latent_of


def _decoded(
    vae: AutoencoderKLFlux2, latent_of: Callable[[str, int], Tensor], files: ModelFiles
) -> Callable[[str, int], Image.Image]:
    grid = grid_of((files.preset.default_base, files.preset.default_base))

    @torch.no_grad()
    def generate(words: str, seed: int) -> Image.Image:
        return pipeline.to_image(pipeline.decode(vae, latent_of(words, seed), grid, torch.float32))

    return generate


def _psnr(one: Path, two: Path) -> float:
    """In dB, of two pictures; a hundred where they are the same."""
    a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (one, two))
    error = float(np.square(a - b).mean())
    return 100.0 if error == 0 else 10 * float(np.log10(255**2 / error))


if __name__ == "__main__":
    main()
