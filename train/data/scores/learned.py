"""The paper's filters that are networks, loaded through transformers from a folder or, when asked, from the Hub.

    nsfw        image classifier; the paper's: an EVA fine-tune. Published: Freepik/nsfw_image_detector (EVA02-B/14)
    watermark   image classifier; the paper's: a SigLIP2 fine-tune. Published: prithivMLmods/Watermark-Detection-SigLIP2
    aesthetic   Aesthetic Predictor v2.5: the pooled feature of SigLIP so400m, made unit length, and a chain of linear
                layers without anything between them (dropout is off), read from its file by their shapes
    clip        CLIP's projected image embedding, unit length, for near-duplicates; the paper's is ViT-L/14

Classifiers keep every class's probability, so that which classes count is decided where thresholds are: in `select`.

Heavy ring: torch; transformers inside functions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.disk import file_sha256
from backend.errors import CheckpointError, ModelMissingError, NetworkError, NumericsError, first_line
from backend.hub.snapshot import snapshot
from backend.memory.device import choose_device
from backend.paths import expanded

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
# What their publishers state. Shown before a model is first used; a model of one's own states its own or nothing.
LICENCES: Mapping[str, str] = {
    "Freepik/nsfw_image_detector": "MIT",
    "Falconsai/nsfw_image_detection": "Apache-2.0",
    "prithivMLmods/Watermark-Detection-SigLIP2": "Apache-2.0",
    "google/siglip-so400m-patch14-384": "Apache-2.0; the head's repository: AGPL-3.0",
    "openai/clip-vit-large-patch14": "MIT (of OpenAI's code release; the Hub states none)",
}


@dataclass(frozen=True)
class Model:
    """A learned filter ready to be loaded anywhere: picklable."""

    filter: str  # "nsfw", "watermark", "aesthetic" or "clip"
    name: str  # as given: a path or a Hub id
    folder: str  # where its files lie
    head: str | None  # aesthetic only: the file of the linear layers
    identity: str  # SHA-256 over its files: part of the stamp
    licence: str  # as stated by its card or its publisher; "not stated" otherwise


# -------------------------------------------------------------------------------------------------------------- finding


def find_model(name_of_filter: str, name: str, *, head: str | None = None, download: bool = False) -> Model:
    """Where a model is: a folder on this disk, or a Hub id in the Hub's cache; `download`: fetched where it is not.

    Raises ModelMissingError, NetworkError, CheckpointError (files that are not safetensors).
    """
    local = expanded(name)
    folder = local.resolve() if local.is_dir() else _from_hub(name, download)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name_of_filter}: {folder} has no config.json with .safetensors weights",
            hint="pickled weights (.bin, .pth) are never opened: use a repository or revision with safetensors",
        )
    files = [*weights, folder / "config.json", folder / "preprocessor_config.json"]
    if name_of_filter == "aesthetic":
        files.append(_checked_head(head))
    digests = [file_sha256(file) for file in files if file.is_file()]
    identity = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Model(name_of_filter, name, str(folder), head, identity, _licence(name, folder))


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "README.md"]
    try:
        return snapshot(name, wanted, download=download)
    except (LocalEntryNotFoundError, HFValidationError) as error:
        if download and isinstance(error, LocalEntryNotFoundError):
            raise NetworkError(f"cannot fetch {name}: {first_line(error)}") from error
        raise ModelMissingError(
            f"{name} is neither a folder nor in the Hub's cache",
            hint=f"--set download=true fetches it (licence: {LICENCES.get(name, 'see its page')}); or give a folder",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(f"cannot fetch {name}: {first_line(error)}") from error


def _checked_head(head: str | None) -> Path:
    file = expanded(head) if head else None
    if file is not None and file.suffix == ".safetensors" and file.is_file():
        return file
    raise ModelMissingError(
        f"aesthetic needs the predictor's head as .safetensors, got {head or 'nothing'}",
        hint="take aesthetic_predictor_v2_5.pth (AGPL-3.0) from its makers, write it as safetensors with torch.load("
        "…, weights_only=True) and safetensors.torch.save_file, and give it: --set aesthetic_head=FILE",
    )


def _licence(name: str, folder: Path) -> str:
    card = folder / "README.md"
    if card.is_file():
        lines = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0].splitlines()
        stated = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)
        if stated:
            return f"{stated} (says its card)"
    return LICENCES.get(name, "not stated")


# -------------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Scorer:
    """A loaded model: `prepare` runs a picture at a time, `score` a batch."""

    columns: tuple[pa.Field, ...]
    prepare: Callable[[Image.Image], Tensor]  # upright RGB -> CHW
    score: Callable[[Tensor], list[Sequence[Any]]]  # BCHW -> for every picture the values of `columns`


def pick_device(asked: str) -> torch.device:
    """`auto`: this worker's GPU, or the CPU where there is none. Workers are numbered, and so are GPUs.

    Raises UsageError for one that is not here.
    """
    if asked != "auto":
        return choose_device(asked)
    count = torch.cuda.device_count()
    return torch.device(f"cuda:{int(os.environ.get('LENS_WORKER', '0')) % count}" if count else "cpu")


@lru_cache(maxsize=8)  # a process's models stay loaded from shard to shard
def load_scorer(model: Model, device: torch.device) -> Scorer:
    """Raises CheckpointError where transformers cannot load it, or tensors are missing or misshapen."""
    # On the CPU bfloat16 is no faster and rounds the scores.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    network, processor = _load_network(model, dtype)
    network = network.to(device).eval().requires_grad_(False)

    def prepare(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def run(pixels_BCHW: Tensor) -> Any:
        return network(pixels_BCHW.to(device, dtype))

    if model.filter == "clip":
        width = int(network.config.projection_dim)
        columns = (pa.field("embedding", pa.list_(pa.float16(), width)),)
        return Scorer(columns, prepare, lambda x: [(row,) for row in _unit(run(x).image_embeds).half().cpu().numpy()])
    if model.filter == "aesthetic":
        weight_W, bias = _one_linear(Path(model.head or ""), int(network.config.hidden_size))
        weight_W, bias = weight_W.to(device), bias.to(device)
        columns = (pa.field("score", pa.float32()),)
        return Scorer(
            columns, prepare, lambda x: [(s,) for s in (_unit(run(x).pooler_output) @ weight_W + bias).tolist()]
        )
    names = [str(network.config.id2label[i]) for i in range(int(network.config.num_labels))]
    columns = tuple(pa.field(name, pa.float32()) for name in names)
    return Scorer(columns, prepare, lambda x: [tuple(p) for p in run(x).logits.float().softmax(-1).tolist()])


def _load_network(model: Model, dtype: torch.dtype) -> tuple[Any, Any]:
    """The network and its processor, of the folder alone. Raises CheckpointError."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageClassification,
        CLIPVisionModelWithProjection,
        SiglipVisionModel,
    )

    kinds = {"aesthetic": SiglipVisionModel, "clip": CLIPVisionModelWithProjection}
    kind: Any = kinds.get(model.filter, AutoModelForImageClassification)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(model.folder, local_files_only=True)
            if model.filter in kinds and hasattr(config, "vision_config"):  # of the whole model: its vision half
                if model.filter == "clip":  # the whole's width holds, not the half's default
                    config.vision_config.projection_dim = config.projection_dim
                config = config.vision_config
            # Pillow's way, so that scores do not depend on whether torchvision is installed; timm has no other way.
            way = {} if config.model_type == "timm_wrapper" else {"backend": "pil"}
            processor = AutoImageProcessor.from_pretrained(model.folder, local_files_only=True, **way)
            network, told = kind.from_pretrained(
                model.folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
            )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        hint = "pip install timm torchvision" if isinstance(error, ImportError) else None
        raise CheckpointError(f"{model.filter}: cannot load {model.name}: {first_line(error)}", hint=hint) from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise CheckpointError(f"{model.filter}: {model.name} lacks {len(missing)} tensors, {missing[0]} among them")
    return network, processor


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' table of the tensors that are left out: a text half, whenever a vision half is loaded."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _unit(x_BW: Tensor) -> Tensor:
    return F.normalize(x_BW.float(), dim=-1)


def _one_linear(file: Path, width: int) -> tuple[Tensor, Tensor]:
    """Weight (width,) and bias () equal to the file's chain of linear layers, multiplied out in float64.

    Raises CheckpointError for a damaged file, and where the layers do not follow one another from `width` to 1.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {first_line(error)}") from error
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        *_, number, name = ["", *key.split(".")]
        if number.isdigit():
            layers.setdefault(int(number), {})[name] = tensor.double()
    matrix, offset = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for number, layer in sorted(layers.items()):
        if set(layer) != {"weight", "bias"} or layer["weight"].shape[-1] != len(offset):
            raise CheckpointError(f"{file}: layer {number} does not take the {len(offset)} values before it")
        matrix, offset = layer["weight"] @ matrix, layer["weight"] @ offset + layer["bias"]
    if matrix.shape != (1, width) or not layers:
        raise CheckpointError(f"{file} is no chain of linear layers that ends in one number")
    return matrix[0].float(), offset[0].float()


def score_batches(model: Model, scorer: Scorer, prepared: Sequence[Tensor | None], batch: int) -> dict[str, list[Any]]:
    """Columns of a shard: None where there is no picture. Raises NumericsError for a score that is not finite."""
    where = [i for i, pixels in enumerate(prepared) if pixels is not None]
    out: dict[str, list[Any]] = {column.name: [None] * len(prepared) for column in scorer.columns}
    for first in range(0, len(where), batch):
        index = where[first : first + batch]
        values = scorer.score(torch.stack([pixels for i in index if (pixels := prepared[i]) is not None]))
        for i, row in zip(index, values, strict=True):
            if not np.isfinite(np.asarray(row, np.float32)).all():
                raise NumericsError(f"{model.filter}: {model.name} gave a number that is not finite")
            for column, value in zip(scorer.columns, row, strict=True):
                out[column.name][i] = value
    return out


def describe(model: Model) -> str:
    architecture = json.loads((Path(model.folder) / "config.json").read_text()).get("architectures") or ["timm"]
    return f"{model.filter}: {model.name} ({architecture[0]}), licence: {model.licence}"
