"""A request in words: one line for a person, and one command line that makes the same pictures again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from backend.requests import NO_LORA
from backend.settings import GenerateSettings
from backend.types import Encoder, GenerationRequest, LoraMode


def command_line(
    request: GenerationRequest, settings: GenerateSettings, output: str | None = None, *, reasoner: Sequence[str] = ()
) -> str:
    """A `lens gen` line, quoted for a POSIX shell, that makes the same pictures again, also under these settings.

    It holds the prompt that was drawn, rewritten or not, and nobody may rewrite it once more. `reasoner` are flags
    about that where they are needed. What is as it is without flag and setting is left out.
    """
    prompt, usual = request.prompt, GenerateSettings()

    def needed(name: str) -> bool:
        """Whether the flag has to be written: by itself the value would be another."""
        return getattr(request, name) != getattr(usual, name) or getattr(settings, name) != getattr(usual, name)

    words = ["lens", "gen"]
    # A prompt that begins with a hyphen would be read as a flag, and "-" as stdin.
    words += [f"--prompt={prompt}"] if prompt.startswith("-") else [prompt]
    words += ["--model", request.model, "--size", f"{request.width}x{request.height}"]
    words += ["--steps", str(request.steps), "--guidance", _number(request.guidance)]
    negative = request.negative_prompt
    words += [f"--negative-prompt={negative}"] if negative or settings.negative_prompt else []
    for first, last in seed_runs(request.seeds):
        words += ["--seed", str(first) if first == last else f"{first}..{last}"]
    for name in ("dtype", "device", "encoder", "quant"):
        words += [f"--{name}", str(getattr(request, name))] if needed(name) else []
    if request.loras:
        from backend.lora.names import written

        for use in request.loras:
            words += ["--lora", written(use)]
        mode = request.loras[0].mode
        words += ["--lora-mode", str(mode)] if {mode, settings.lora_mode} != {LoraMode.auto} else []
    elif settings.loras:
        words += ["--lora", NO_LORA]
    words += ["--profile", request.profile] if request.profile is not None else []
    words += ["--vram", f"{request.vram / 10**6:.15g}MB"] if request.vram is not None else []
    words += ["--compile"] if request.compiled else []
    words += ["--reasoner", "off"] if request.expander is not None else reasoner
    words += ["--output", output] if output is not None else []
    return shlex.join(words)


def _number(value: float) -> str:
    """As short as a person writes it, and the same number again."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


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
