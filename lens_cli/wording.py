"""A request in words: one line for a person, and one command line that makes the same pictures again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from backend.types import DType, Encoder, GenerationRequest, LoraMode, Quant


def command_line(request: GenerationRequest, output: str | None = None, *, reasoner: Sequence[str] = ()) -> str:
    """A `lens gen` line, quoted for a POSIX shell, that makes the same pictures again.

    It holds the prompt that was drawn, rewritten or not, and nobody may rewrite it once more. `reasoner` are flags
    about that where they are needed.
    """
    prompt = request.prompt
    words = ["lens", "gen"]
    # A prompt that begins with a hyphen would be read as a flag, and "-" as stdin.
    words += [f"--prompt={prompt}"] if prompt.startswith("-") else [prompt]
    words += ["--model", request.model, "--size", f"{request.width}x{request.height}"]
    words += ["--steps", str(request.steps), "--guidance", f"{request.guidance:g}"]
    words += [f"--negative-prompt={request.negative_prompt}"] if request.negative_prompt else []
    for first, last in seed_runs(request.seeds):
        words += ["--seed", str(first) if first == last else f"{first}..{last}"]
    words += ["--dtype", str(request.dtype)] if request.dtype is not DType.auto else []
    words += ["--device", request.device] if request.device != "auto" else []
    words += ["--encoder", str(request.encoder)] if request.encoder is not Encoder.auto else []
    words += ["--quant", str(request.quant)] if request.quant is not Quant.auto else []
    for use in request.loras:
        words += ["--lora", f"{use.path}={use.scale!r}"]
    mode = request.loras[0].mode if request.loras else LoraMode.auto
    words += ["--lora-mode", str(mode)] if mode is not LoraMode.auto else []
    words += ["--profile", request.profile] if request.profile is not None else []
    words += ["--vram", f"{request.vram / 10**6:.15g}MB"] if request.vram is not None else []
    words += ["--compile"] if request.compiled else []
    words += ["--reasoner", "off"] if request.expander is not None else reasoner
    words += ["--output", output] if output is not None else []
    return shlex.join(words)


def arithmetic(request: GenerationRequest) -> str:
    """How it is computed, in one line: for -v and --dry-run."""
    near = " (near-exact)" if request.encoder is Encoder.llama else ""
    return (
        f"arithmetic: {request.dtype}, quant: {request.quant}, device: {request.device}, "
        f"text encoder: {request.encoder}{near}"
    )


def seed_runs(seeds: tuple[int, ...]) -> list[tuple[int, int]]:
    """Consecutive seeds as (first, last): 5, 6, 7, 9 -> (5, 7), (9, 9)."""
    runs: list[tuple[int, int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], seed)
        else:
            runs.append((seed, seed))
    return runs


def describe(request: GenerationRequest) -> str:
    """What is about to run, in one line: the answer to "which size, which seed?"."""
    seeds = ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in seed_runs(request.seeds))
    loras = "".join(f", LoRA {Path(use.path).stem} {use.scale:g}" for use in request.loras)
    return (
        f"{request.width}x{request.height}, {Path(request.model).name}, {request.steps} steps, "
        f"guidance {request.guidance:g}, seed {seeds}{loras}"
    )
