"""Pictures of other programs as records. Trusted because the files are made here as those programs write them, and what
comes out is spelled out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from backend.picture.history import History
from backend.picture.imports import import_folders, pixels_of, record_of, wish_of_import
from backend.wish import Wish

GRAPH: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 2**63 + 1, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.ckpt"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
}  # fmt: skip
INVOKE = {
    "generation_mode": "txt2img", "positive_prompt": "a wooden boat", "negative_prompt": "fog", "width": 64,
    "height": 32, "seed": 42, "cfg_scale": 7.5, "steps": 30, "scheduler": "euler", "model": {"name": "x", "hash": "h"},
}  # fmt: skip


def save(path: Path, colour: str, **chunks: str) -> Path:
    info = PngInfo()
    for key, value in chunks.items():
        info.add_text(key, value)
    Image.new("RGB", (64, 32), colour).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("chunks", "made_by", "expected"),
    [
        (
            {"parameters": "a cat,\non a mat\nNegative prompt: dogs\nSteps: 7, CFG scale: 1.5, Seed: 3, Model: sdxl"},
            "AUTOMATIC1111 or alike", ("a cat,\non a mat", "dogs", 3, 7, 1.5, "sdxl"),
        ),
        (
            {"prompt": json.dumps(GRAPH), "workflow": json.dumps({"nodes": [], "links": []})},
            "ComfyUI", ("a glass bottle", "text, watermark", None, 20, 8.0, "v1-5.ckpt"),  # a seed past SQLite's end
        ),
        ({"invokeai_metadata": json.dumps(INVOKE)}, "InvokeAI", ("a wooden boat", "fog", 42, 30, 7.5, "")),
        (
            {"parameters": "a cat\nSteps: many, Seed: -1, CFG scale: 1e999, Model: x"},
            "AUTOMATIC1111 or alike", ("a cat", "", None, None, None, "x"),
        ),
    ],
)  # fmt: skip
def test_what_other_programs_say(
    tmp_path: Path, chunks: dict[str, str], made_by: str, expected: tuple[Any, ...]
) -> None:
    path = save(tmp_path / "a.png", "red", **chunks)
    record = record_of(path)
    assert record is not None and record["imported"]["generator"] == made_by
    said = (
        *(record[key] for key in ("prompt", "negative_prompt", "seed", "steps", "guidance")),
        record["model"]["name"],
    )
    assert said == expected
    assert record["pixel_sha256"] == pixels_of(path) and record["id"] == record["pixel_sha256"][:32]
    with History(tmp_path / "history.db") as history:
        for new in (1, 0):
            done = import_folders(history, [tmp_path], on_damage=lambda error: pytest.fail(str(error)))
            assert (done.new, done.known) == (new, 1 - new)
        entry = history.search(expected[0].split()[1])[0]
        assert (entry.relation, entry.seed, entry.path) == ("import", expected[2], path)
    seeds = None if expected[2] is None else (str(expected[2]),)
    assert wish_of_import(record) == Wish(
        prompt=expected[0], negative_prompt=expected[1] or None, seeds=seeds, ar="64:32"
    )


def test_what_says_nothing_is_nothing(tmp_path: Path) -> None:
    assert record_of(save(tmp_path / "a.png", "red")) is None
    assert record_of(save(tmp_path / "b.png", "red", prompt="[]", workflow="{")) is None
    (tmp_path / "c.png").write_bytes(b"none")
    assert pixels_of(tmp_path / "c.png") is None
