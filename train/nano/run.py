"""Lens-Nano from nothing on one machine: autoencoder, language model, transformer, then the files that ship.

Each part trains in its own folder of the run and resumes; a finished part is not trained again. Nothing is
downloaded: the data are drawn (`train.world.scenes`). Knows nothing about command lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from tokenizers import Tokenizer

from backend.checkpoints.config_files import read_json
from backend.checkpoints.identity import identify_model
from backend.checkpoints.resolve import ModelFiles, resolve_model
from backend.checkpoints.write_gguf import write_text_encoder_gguf, write_transformer_gguf
from backend.checkpoints.write_safetensors import write_vae
from backend.disk import write_atomic
from backend.errors import UsageError
from backend.loading import load_text_encoder, load_tokenizer, load_transformer, load_vae
from backend.memory.device import choose_device
from backend.model.autoencoder import build_vae
from backend.model.text_encoder import LensGptOssEncoder
from backend.presets import Embedded, get
from train import pretrain
from train.batches.encoders import Frozen
from train.batches.preview import sheet
from train.nano import language, vae
from train.recipes import PARTS, NanoConfig, transformer_of
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.folder import alone
from train.world.vocabulary import write_vocabulary

_START = "start.safetensors"  # of a run that goes on from a finished model: its transformer
_START_NOTE = "start.json"  # and the SHA-256 of each of that model's components
_OWN = ("tokenizer.json", "vae", "vae.safetensors", "language", "language.safetensors", "transformer")  # of any run


def run(
    config: NanoConfig, *, parts: tuple[str, ...] = PARTS, out: Path | None = None, say: Callable[[str], None]
) -> Path:
    """Train the named parts, in the order of PARTS; returns the folder of the exported model (`out`, or `<run>/model`),
    or the run's own where none is exported.

    Raises LensError; CancelledError where it was asked to stop, with the state of the part under way saved.
    """
    if config.machine.device == "auto":
        config = replace(config, machine=replace(config.machine, device=str(choose_device("auto"))))
    trained = [part for part in PARTS[:-1] if part in parts]
    # Before the run's folder is made: a command that is refused leaves none.
    if trained:
        pretrain.check(transformer_of(config))
    start = None if config.start_from is None else resolve_model(str(config.start_from))
    if trained or start is not None:
        with alone(config.run_dir):
            if start is not None:
                _adopt(config, start)
            for part in trained:
                if part != "transformer" and (config.run_dir / _START).exists():
                    say(f"== {part}: that of the model the run began from")
                    continue
                say(f"== {part}")
                {"vae": _train_vae, "language": _train_language, "transformer": _train_transformer}[part](config)
    if "export" not in parts:
        return config.run_dir
    folder = out if out is not None else config.run_dir / "model"
    say("== export")
    export(config, folder)
    return folder


def _adopt(config: NanoConfig, files: ModelFiles) -> None:
    """Take a finished model's autoencoder, language model and tokenizer into the run, and note its transformer.

    Raises UsageError where the run began otherwise, CheckpointError where the files are damaged.
    """
    note = config.run_dir / _START_NOTE
    model = identify_model(files).sha256
    hint = "start_from as the run began, or another --run-dir"
    if note.exists():
        if read_json(note) != model:
            raise UsageError(f"{config.run_dir} began from another model than {files.name} is now", hint=hint)
    elif own := [name for name in _OWN if (config.run_dir / name).exists()]:
        raise UsageError(f"{config.run_dir} began without start_from: it has a {own[0]} of its own", hint=hint)
    if (config.run_dir / _START).exists():
        return
    write_atomic(note, (json.dumps(model, indent=1) + "\n").encode())
    write_atomic(config.run_dir / "tokenizer.json", load_tokenizer(files).to_str().encode())
    parts = {
        "vae.safetensors": load_vae(files, torch.float32, "cpu"),
        "language.safetensors": load_text_encoder(files, torch.float32, "cpu", with_head=True),
        _START: load_transformer(files, torch.float32, "cpu"),  # last: its presence says that all are there
    }
    for name, network in parts.items():
        checkpoints.save_network(config.run_dir / name, network.state_dict())


def _train_vae(config: NanoConfig) -> None:
    crops = vae.VAEConfig(
        params=config.params.vae,
        run_dir=config.run_dir / "vae",
        steps=config.vae.steps,
        batch=config.vae.batch,
        learning_rate=config.vae.learning_rate,
        seed=config.seed,
        workers=config.machine.workers,
        device=config.machine.device,
    )
    whole = replace(
        crops,
        run_dir=config.run_dir / "vae-whole",
        steps=config.vae.whole_steps,
        batch=config.vae.whole_batch,
        crop=128,
        learning_rate=0.4 * config.vae.learning_rate,
        warmup=50,
        noise_warmup=1,
    )
    finished = config.run_dir / "vae.safetensors"
    if finished.exists() and all(_reached(part.run_dir) >= part.steps for part in (crops, whole)):
        return  # measured anew its latents might have another scale than those the transformer has learned
    trained = vae.run(whole, initial=vae.run(crops).state_dict())
    checkpoints.save_network(finished, trained.state_dict())


def _reached(run_dir: Path) -> int:
    """Steps of a part's newest checkpoint; 0: it has none."""
    found = checkpoints.folders(run_dir)
    return int(read_json(found[-1] / checkpoints.STATE)["step"]) if found else 0


def _train_language(config: NanoConfig) -> None:
    tokenizer = _tokenizer(config)
    trained = language.run(
        language.LanguageConfig(
            params=config.params.text,
            run_dir=config.run_dir / "language",
            steps=config.language.steps,
            tokens_per_step=config.language.tokens,
            learning_rate=config.language.learning_rate,
            seed=config.seed,
            workers=config.machine.workers,
            device=config.machine.device,
            compile=config.machine.compile,
        ),
        tokenizer,
    )
    checkpoints.save_network(config.run_dir / "language.safetensors", trained.state_dict())


def _tokenizer(config: NanoConfig) -> Tokenizer:
    """The run's tokenizer, trained once."""
    path = config.run_dir / "tokenizer.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = language.train_tokenizer(
            config.params.text.vocab_size, config.params.text.template, seed=config.seed
        )
        write_atomic(path, tokenizer.to_str().encode())
    return Tokenizer.from_file(str(path))


def frozen(config: NanoConfig) -> Frozen:
    """The trained autoencoder, language model and tokenizer of this run."""
    device = torch.device(config.machine.device)
    autoencoder = build_vae(config.params.vae)
    autoencoder.load_state_dict(checkpoints.load_network(config.run_dir / "vae.safetensors"))
    cast(Any, autoencoder).to(device, memory_format=torch.channels_last)  # diffusers types its `to` as a wrapper
    encoder = LensGptOssEncoder(config.params.text, head=True)
    encoder.load_state_dict(checkpoints.load_network(config.run_dir / "language.safetensors"))
    return Frozen(
        vae=autoencoder.eval().requires_grad_(False),
        encoder=encoder.to(device).eval().requires_grad_(False),
        tokenizer=_tokenizer(config),
    )


def _train_transformer(config: NanoConfig) -> None:
    ready = frozen(config)

    def preview(model: torch.nn.Module, base: int) -> Image:
        return sheet(model, ready, config.params, side=base, guidance=get("nano").guidance)

    start = config.run_dir / _START
    initial = checkpoints.load_network(start) if start.exists() else None
    trained = pretrain.run(transformer_of(config), ready, initial=initial, preview=preview)
    checkpoints.save_network(config.run_dir / "transformer.safetensors", trained.state_dict())


def export(config: NanoConfig, folder: Path) -> None:
    """Write the three files of an embedded model and the parameters they were made with."""
    state = _average(config)
    folder.mkdir(parents=True, exist_ok=True)
    names = Embedded()
    about = {"general.name": "Lens-Nano", "general.license": "mit"}
    write_transformer_gguf(folder / names.transformer, state, config.params.dit, quant="Q8_0", metadata=about)
    write_text_encoder_gguf(
        folder / names.text_encoder,
        checkpoints.load_network(config.run_dir / "language.safetensors"),
        config.params.text,
        _tokenizer(config).to_str(),
        dtype="F16",
        metadata=about,
    )
    write_vae(folder / names.vae, checkpoints.load_network(config.run_dir / "vae.safetensors"), config.params.vae)
    write_vocabulary(folder)


def _average(config: NanoConfig) -> dict[str, torch.Tensor]:
    """The averaged weights of the newest checkpoint; of the finished part where its checkpoints are gone."""
    folder, finished = config.run_dir / "transformer", config.run_dir / "transformer.safetensors"
    found = checkpoints.latest(folder, Ranks(torch.device("cpu")))
    if found is not None:
        return checkpoints.read_whole(found, "ema")
    if not finished.exists():
        raise FileNotFoundError(f"{folder}: no checkpoint yet; train the transformer first")
    return checkpoints.load_network(finished)
