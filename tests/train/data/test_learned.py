"""Learned filters, on tiny random networks of the published architectures saved in the published format.

What is trusted: transformers' own model classes and image processors, called here directly, are the independent
statement; for the aesthetic head, its layers are applied here one after the other.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from backend.errors import CheckpointError, LensError, ModelMissingError, UsageError
from train.data.duplicates.dedup import DedupSettings
from train.data.filters import LEARNED
from train.data.score import ScoreSettings, find_models, score_rows
from train.data.scores import learned

_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as their publishers lay them out: whole CLIP and SigLIP models, text halves included."""
    torch.manual_seed(0)
    top = tmp_path_factory.mktemp("models")
    size = {"height": 28, "width": 28}
    labels = {0: "neutral", 1: "low", 2: "medium", 3: "high"}
    made = {
        "nsfw": (ViTForImageClassification(ViTConfig(**_VISION, id2label=labels)), ViTImageProcessorPil(size=size)),
        "watermark": (
            SiglipForImageClassification(
                SiglipConfig(vision_config=_VISION, text_config=_TEXT, id2label={0: "No Watermark", 1: "Watermark"})
            ),
            SiglipImageProcessorPil(size=size),
        ),
        "aesthetic": (
            SiglipModel(SiglipConfig(vision_config=_VISION, text_config=_TEXT)),
            SiglipImageProcessorPil(size=size),
        ),
        "clip": (
            CLIPModel(CLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=24)),
            CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size),
        ),
    }
    for name, (model, processor) in made.items():
        # Fresh heads are zero or tiny: every class would come out alike, and a swapped one unnoticed.
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(top / name)
        processor.save_pretrained(top / name)
    (top / "watermark" / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A card\n")
    save_file(_head().state_dict(), top / "head.safetensors")
    return {name: top / name for name in (*made, "head.safetensors")}


def _head() -> nn.Sequential:
    """The published head's layers, from 32 instead of 1152."""
    generator = torch.Generator().manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in ((32, 16), (16, 8), (8, 1)):
        linear = nn.Linear(before, after)
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        layers += [linear, nn.Dropout(0.5)]
    head = nn.ModuleDict({"scoring_head": nn.Sequential(*layers[:-1])})
    return head  # pyright: ignore[reportReturnType]


def _pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((28, 28), (40, 30), (33, 64))]


def _rows(pictures: list[Image.Image]) -> tuple[pa.Table, dict[str, bytes]]:
    """Scan rows of the pictures and, in the middle, one that cannot be read."""
    data: dict[str, bytes] = {}
    for i, picture in enumerate(pictures):
        out = io.BytesIO()
        picture.save(out, "PNG")
        data[f"p{i}"] = out.getvalue()
    keys = [*[*data][:1], "bad", *[*data][1:]]
    rows = [
        {"key": k, "path": k, "member": None, "offset": 0, "nbytes": 0, "error": "no" if k == "bad" else None}
        for k in keys
    ]
    return pa.Table.from_pylist(rows), data


def _settings(folders: dict[str, Path]) -> ScoreSettings:
    named = {name: str(folders[name]) for name in LEARNED}
    return ScoreSettings(filters=(), aesthetic_head=str(folders["head.safetensors"]), **named)  # pyright: ignore


@pytest.mark.parametrize("batch", [2, 32])
def test_scores_are_those_of_transformers(folders: dict[str, Path], batch: int) -> None:
    pictures = _pictures()
    rows, data = _rows(pictures)
    models = find_models(_settings(folders))
    tables = score_rows(rows, (), models, read=lambda row: data[row["path"]], batch=batch, device="cpu")
    real = [0, 2, 3]  # row 1 cannot be read

    with torch.inference_mode():
        for name, kind, processor in (
            ("nsfw", ViTForImageClassification, ViTImageProcessorPil),
            ("watermark", SiglipForImageClassification, SiglipImageProcessorPil),
        ):
            network = kind.from_pretrained(folders[name]).eval()
            pixels = processor.from_pretrained(folders[name])(images=pictures, return_tensors="pt")["pixel_values"]
            expected = network(pixels).logits.softmax(-1)
            assert expected.std() > 0.05  # the classes differ, so a swapped label would show
            for i, label in dict(network.config.id2label or {}).items():
                column = tables[name][label].to_pylist()
                assert column[1] is None
                assert [column[r] for r in real] == pytest.approx(expected[:, i].tolist(), abs=1e-5)

        clip = CLIPModel.from_pretrained(folders["clip"]).eval()
        pixels = CLIPImageProcessorPil.from_pretrained(folders["clip"])(images=pictures, return_tensors="pt")
        features = clip.visual_projection(clip.vision_model(**pixels).pooler_output)
        features = features / features.norm(dim=-1, keepdim=True)
        embeddings = tables["clip"]["embedding"].to_pylist()
        assert embeddings[1] is None
        assert np.allclose(np.asarray([embeddings[r] for r in real], np.float32), features.numpy(), atol=1e-3)

        siglip = SiglipModel.from_pretrained(folders["aesthetic"]).eval()
        pixels = SiglipImageProcessorPil.from_pretrained(folders["aesthetic"])(images=pictures, return_tensors="pt")
        pooled = siglip.vision_model(**pixels).pooler_output
        scores = _head()["scoring_head"].eval()(pooled / pooled.norm(dim=-1, keepdim=True))[:, 0]  # pyright: ignore
        column = tables["aesthetic"]["score"].to_pylist()
        assert column[1] is None
        assert [column[r] for r in real] == pytest.approx(scores.tolist(), abs=1e-4)


def test_licence_is_the_cards_or_the_publishers(folders: dict[str, Path]) -> None:
    licences = {model.filter: learned.describe(model) for model in find_models(_settings(folders))}
    assert "licence: apache-2.0 (says its card)" in licences["watermark"]
    assert "SiglipForImageClassification" in licences["watermark"]
    assert "licence: not stated" in licences["nsfw"]  # a folder of one's own, no card


def test_identity_follows_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """What makes a filter be scored anew: other weights, not another place."""
    before = learned.find_model("clip", str(folders["clip"]))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folders["clip"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert learned.find_model("clip", str(copy)).identity == before.identity
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert learned.find_model("clip", str(copy)).identity != before.identity


def test_what_cannot_be_loaded_says_why(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError) as missing:  # offline, and not in the cache
        learned.find_model("nsfw", "Freepik/nsfw_image_detector")
    assert "download=true" in (missing.value.hint or "") and "MIT" in (missing.value.hint or "")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="safetensors"):
        learned.find_model("nsfw", str(tmp_path))
    with pytest.raises(ModelMissingError, match="head"):
        learned.find_model("aesthetic", str(folders["aesthetic"]))


@pytest.mark.parametrize("fault", ["missing", "misshapen"])
def test_tensors_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path, fault: str) -> None:
    """transformers alone would fill a missing tensor with random numbers."""
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folders["clip"] / name).read_bytes())
    tensors = load_file(folders["clip"] / "model.safetensors")
    projection = tensors.pop("visual_projection.weight")
    if fault == "misshapen":
        tensors["visual_projection.weight"] = projection[:-1].contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors, visual" if fault == "missing" else "cannot load"):
        learned.load_scorer(learned.find_model("clip", str(tmp_path)), torch.device("cpu"))


def test_a_head_of_another_width_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    save_file({"layers.scoring_head.0.weight": torch.zeros(1, 5), "layers.scoring_head.0.bias": torch.zeros(1)}, head)
    model = learned.find_model("aesthetic", str(folders["aesthetic"]), head=str(head))
    with pytest.raises(LensError, match="32 values"):
        learned.load_scorer(model, torch.device("cpu"))


def test_a_head_that_is_none_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    model = learned.Model("aesthetic", "a", str(folders["aesthetic"]), str(head), "", "")
    head.write_bytes(b"not at all")
    with pytest.raises(CheckpointError, match=r"cannot read .*head\.safetensors"):
        learned.load_scorer(model, torch.device("cpu"))
    save_file({"weight": torch.zeros(1, 32)}, head)  # a layer without a number
    with pytest.raises(CheckpointError, match="no chain of linear layers"):
        learned.load_scorer(model, torch.device("cpu"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(device: str) -> None:
    with pytest.raises(UsageError, match="is unknown" if device == "gpu" else "not available here"):
        learned.pick_device(ScoreSettings(device=device).device)
    with pytest.raises(UsageError, match="device = 'mps'"):
        DedupSettings(device="mps")
