"""Facts about this machine, as sections of plain values. Sizes are bytes, unknown is None."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from backend.disk import free_bytes
from backend.errors import FileError, human_bytes
from lens_cli.terminal.console import looking_at_stdout
from lens_cli.terminal.graphics import may_be_asked

Section = dict[str, Any]

PACKAGES = (
    "torch", "diffusers", "transformers", "bitsandbytes", "gguf", "llama-cpp-python", "huggingface-hub", "tokenizers",
    "safetensors", "numpy", "pillow", "typer", "rich", "textual", "textual-image",
)  # fmt: skip


def report(*, with_torch: bool) -> dict[str, Section]:
    """Every section, in the order in which they are shown. `with_torch` costs the seconds of its import."""
    sections = {"system": system(), "disk": disks(), "terminal": terminal(), "packages": packages(), "models": models()}
    if with_torch:
        sections["torch"] = torch_build()
    sections["switches"] = switches()
    sections["settings"] = settings()
    return sections


def system() -> Section:
    import psutil

    from backend.packing.ggml_library import default_threads

    memory = psutil.virtual_memory()
    return {
        "lens": _version("lens"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": default_threads(),  # OMP_NUM_THREADS, or the physical cores
        "waiting_threads": os.environ.get("OMP_WAIT_POLICY", "").lower(),  # "passive" sleep: see `lens_cli.app`
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory.total,
        "memory_free": memory.available,
    }


def disks() -> Section:
    from backend import paths

    places = {"working_folder": Path.cwd(), "model_cache": paths.hub_cache(), "lens_cache": paths.cache_dir()}
    return {f"free_in_{name}": _free(folder) for name, folder in places.items()}


def terminal() -> Section:
    inside = "tmux" if "TMUX" in os.environ else "screen" if os.environ.get("TERM", "").startswith("screen") else None
    found: Section = {
        "stdout": "terminal" if looking_at_stdout() else "no terminal",
        "TERM": os.environ.get("TERM"),
        "program": os.environ.get("TERM_PROGRAM"),
        "graphics": graphics(),
    }
    if inside == "tmux":
        found["tmux_needs"] = "set -g allow-passthrough on (kitty); set -as terminal-features ',*:sixel' (sixel)"
    return found


def graphics() -> str:
    """How `--show` would draw: asks the terminal where there is one that answers."""
    if not may_be_asked():
        return "half blocks"
    from textual_image import renderable

    if renderable.Image is renderable.TGPImage:
        return "kitty"
    return "sixel" if renderable.Image is renderable.SixelImage else "half blocks"


def packages() -> Section:
    return {name: _version(name) or "missing" for name in PACKAGES}


def models() -> Section:
    """Where each registry model stands; one that is damaged says how."""
    from backend import presets
    from backend.checkpoints.resolve import resolve_model
    from backend.errors import LensError, ModelMissingError

    found: Section = {}
    for name in presets.names():
        try:
            found[name] = f"on this disk, {human_bytes(resolve_model(name).total_bytes)}"
        except ModelMissingError:
            found[name] = "not on this disk"
        except LensError as error:
            found[name] = f"damaged: {error}"
    return found


def torch_build() -> Section:
    import torch

    section: Section = {"version": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            section[f"cuda:{index}"] = torch.cuda.get_device_name(index)
            section[f"cuda:{index}_memory"] = torch.cuda.mem_get_info(index)[1]
        section["gpu_bfloat16"] = torch.cuda.is_bf16_supported()
        section["cuda"] = torch.version.cuda
    else:
        section["gpu"] = "mps" if torch.backends.mps.is_available() else "none that this torch build can use"
    section["cpu_instructions"] = torch.backends.cpu.get_cpu_capability()
    section["cpu_bfloat16"] = cpu_bfloat16()
    return section


def cpu_bfloat16() -> str | None:
    """Whether the processor multiplies bfloat16 itself; None where the system does not tell."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    native = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags]
    return f"in hardware ({', '.join(native)})" if native else "emulated: float32 is faster"


def switches() -> Section:
    """What the environment says about the code of GPUs; a switch that is not set is left out."""
    from backend.errors import UsageError
    from backend.kernels.switches import AUTO, SWITCHES

    found: Section = {}
    for switch in SWITCHES:
        try:
            if switch.value != AUTO:
                found[switch.name] = f"{switch.value}: {switch.what}: {switch.others[switch.value]}"
        except UsageError as error:
            found[switch.name] = f"{error}; {error.hint}"
    return found


def settings() -> Section:
    from backend import paths
    from backend.errors import UsageError
    from backend.settings import load

    files = {"user_file": paths.config_file(), "project_file": paths.project_file()}
    section: Section = {name: f"{path}{'' if path.exists() else ' (absent)'}" for name, path in files.items()}
    try:
        return section | {key: f"set by {origin}" for key, origin in load().origins.items()}
    except UsageError as error:  # what a person runs doctor for
        return section | {"problem": str(error)}


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _free(folder: Path) -> int | None:
    """Free bytes of the disk that holds `folder`, which need not exist yet."""
    try:
        return free_bytes(folder)
    except FileError:
        return None
