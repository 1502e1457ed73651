"""The light ring stays light: its modules are imported in a fresh interpreter, and `sys.modules` tells what came along.

Static contracts (pyproject, import-linter) cannot see this: they count imports inside functions too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch numpy PIL textual textual_image rich diffusers transformers llama_cpp huggingface_hub bitsandbytes gguf "
    "tokenizers safetensors sd_parsers einops openai dynamicprompts pyparsing fastapi starlette "
    "pydantic uvicorn mcp ray"
).split()


def modules(folder: str) -> list[str]:
    """The dotted names of a folder's modules, those of its folders too."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem[0] != "_"]


LIGHT = [
    *(
        f"backend.{name}"
        for name in (
            "chat.client disk errors events fields params paths presets requests sampling session settings sizes types "
            "wish"
        ).split()
    ),
    *modules("backend/batch"),
    *modules("backend/wishes"),
    "backend.checkpoints.resolve",
    "backend.kernels.switches",
    "backend.packing.schemes",
    "backend.picture.history",
    "backend.picture.ledger",
    "backend.picture.metadata",
    "backend.picture.outputs",
    *(
        f"backend.server.{name}"
        for name in "client drawers feed jobs pictures place queue remote serve service wire worker".split()
    ),
    "lens_cli.app",
    "lens_cli.options",
    "lens_cli.terminal.console",
    "lens_cli.terminal.wording",
    *modules("lens_cli/commands"),
    *(f"train.{name}" for name in ("config", "data.filters", "recipes", "overrides", "lora.config", "judge.config")),
    "train.rl.chance",
    "train.rl.config",
    *(
        f"train.rl.prompts.{name}"
        for name in "checks expand grammar journal near pilot prompt_set wording writer".split()
    ),
    "prompts",
    "prompts.taxonomies",
]


def heavy_of(*names: str) -> list[str]:
    """The heavy packages that come along where these modules are imported in a fresh interpreter."""
    code = f"import sys, {', '.join(names)}\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_light_modules_import_nothing_heavy() -> None:
    """All at once, which is stricter than one by one; only where something came along is each asked alone."""
    if heavy_of(*LIGHT):
        assert {module: heavy for module in LIGHT if (heavy := heavy_of(module))} == {}


def test_a_picture_needs_torch_but_not_the_ecosystem() -> None:
    """Every `lens gen` waits for what the engine imports."""
    lean = [name for name in HEAVY if name not in ("torch", "numpy", "PIL", "safetensors", "tokenizers", "einops")]
    code = f"import sys, backend.engine\nprint(*sorted({set(lean)!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [] and run.stderr == ""


def test_the_check_can_fail() -> None:
    """Proof that the test above sees what it looks for."""
    assert heavy_of("PIL") == ["PIL"]


def test_help_runs_without_the_heavy_ring() -> None:
    """`lens --help` with every heavy package but Rich (which Typer draws the help with) made unimportable."""
    code = (
        f"import sys\nfor name in {[name for name in HEAVY if name != 'rich']!r}: sys.modules[name] = None\n"
        "sys.argv = ['lens', '--help']\nfrom lens_cli.app import main\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "gen" in run.stdout
