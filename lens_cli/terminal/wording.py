"""A request in words: one line for a person, and one command line that makes the same pictures again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.batch.wildcards import is_template
from backend.errors import counted
from backend.inputs.begin import last_pass
from backend.types import Encoder, GenerationRequest, LoraMode
from backend.wish import USUAL, Wish
from backend.wishes.command_words import command_words, seed_runs, wish_of


def command_line(
    request: GenerationRequest, settings: Wish, output: str | None = None, *, reasoner: Sequence[str] = ()
) -> str:
    """A `lens gen` line, quoted for a POSIX shell, that makes the same pictures again, also under these settings.

    It holds the prompt that was drawn, rewritten or not, and nobody may rewrite it once more. `reasoner` are flags
    about that where they are needed. What is as it is without flag and setting is left out.
    """
    again, usual = wish_of(request), USUAL | {"lora_mode": LoraMode.auto, "rl_strength": 1.0}
    mine = again.given() | {"loras": request.loras}
    # By itself the value is the same, and no setting makes it another.
    unsaid = [
        key for key in usual if all(said in (None, usual[key]) for said in (mine.get(key), getattr(settings, key)))
    ]
    words = command_words(replace(again, **dict.fromkeys(unsaid)))
    words += ["--no-wildcards"] if is_template(request.prompt) else []
    words += ["--reasoner", "off"] if request.expander is not None else reasoner
    return shlex.join(["lens", "gen", *words, *command_words(Wish(output=output))])


def arithmetic(request: GenerationRequest) -> str:
    """How it is computed, in one line: for -v and --dry-run."""
    near = " (near-exact)" if request.encoder is Encoder.llama else ""
    return (
        f"arithmetic: {request.dtype}, quant: {request.quant}, device: {request.device}, "
        f"text encoder: {request.encoder}{near}"
    )


def describe(request: GenerationRequest) -> str:
    """What is about to run, in one line: the answer to "which size, which seed?"."""
    seeds = ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in seed_runs(request.seeds))
    after = last_pass(request)
    larger = "" if after is request else f" then {after.width}x{after.height}"
    begun = "" if request.init is None else f", from {Path(request.init.path).name} at strength {request.strength:g}"
    varied = "" if request.around is None else f" around {request.around} at {request.amount:g}"
    loras = "".join(f", LoRA {Path(use.path).stem} {use.scale:g}" for use in request.loras)
    if request.rl_strength not in (None, 1.0):
        loras = f", RL strength {request.rl_strength:g}{loras}"
    return (
        f"{request.width}x{request.height}{larger}, {Path(request.model).name}, {counted(request.steps, 'step')}, "
        f"guidance {request.guidance:g}, seed {seeds}{varied}{begun}{loras}"
    )
