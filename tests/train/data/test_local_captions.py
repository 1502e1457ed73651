"""Captions by a model on this machine, on a tiny random BLIP saved in the published format.

What is trusted: transformers' own model and processor, called here directly; a random network's words mean nothing, so
they must be the same words.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from backend.errors import CheckpointError, ModelMissingError, UsageError
from tests.lens_cli.cli import Run, lens_inside
from tests.train.data.test_dedup import scene
from train.data.captions.ask import CaptionSettings, messages
from train.data.captions.local import LocalCaptioner, find_captioner
from train.data.work import Work

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "red", "green", "dog", "house", "on", "grass"]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("blip")
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text: dict[str, Any] = {
        **small, "vocab_size": len(WORDS), "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
        "encoder_hidden_size": 16, "max_position_embeddings": 32,
    }  # fmt: skip
    torch.manual_seed(3)
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16})
    BlipForConditionalGeneration(config).eval().save_pretrained(folder)
    processor = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(processor, BertTokenizer({word: place for place, word in enumerate(WORDS)})).save_pretrained(folder)
    return folder


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    scene(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_words_are_those_of_the_library(captioner: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    asked = messages("describe", png(1), CaptionSettings(local=str(captioner)))
    local = LocalCaptioner(find_captioner(str(captioner)), device="cpu", max_tokens=6)
    told: list[str] = []
    reply = local.complete(asked, seed=0, on_answer=lambda reply: told.append(reply.text))
    network: Any = BlipForConditionalGeneration.from_pretrained(captioner).eval()
    processor: Any = BlipProcessor.from_pretrained(captioner)
    sent = Image.open(io.BytesIO(__import__("base64").b64decode(asked[1]["content"][0]["image_url"]["url"][23:])))
    out = network.generate(**processor(images=sent, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    assert told == [reply.text] == [processor.decode(out[0], skip_special_tokens=True).strip()] and reply.text
    drawn = {local.complete(asked, seed=seed, on_answer=lambda reply: None).text for seed in (1, 2, 3, 4)}
    assert len(drawn) > 1  # asked again it says something else
    assert local.complete(asked, seed=2, on_answer=lambda reply: None).text in drawn


def test_what_is_no_captioner(tmp_path: Path) -> None:
    with pytest.raises(ModelMissingError, match="not in the Hub's cache"):
        find_captioner("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="cannot load"):
        LocalCaptioner(tmp_path)
    with pytest.raises(UsageError, match="text and local each say"):
        CaptionSettings(text="a dog", local="x")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures, one of them with a text of its own, and a larger one that looks like it, without."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        scene(number, 160, 128).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("my own words")
    scene(0, 160, 128).resize((240, 192)).save(folder / "larger.png")
    return folder


SMALL = ("--set", "select.area=none", "--set", "select.clarity=none", "--set", "select.entropy=none",
         "--set", "bucket.bases=64", "--workers", "0")  # fmt: skip


def test_run_without_an_endpoint(
    captioner: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No text: exit 8 and the reason, and the report. One text for all: its own words stay. A model: its words."""

    def data(*words: str, stage: str = "run") -> Run:
        return lens_inside(monkeypatch, capfd, "train", "data", stage, str(tmp_path / "work"), *words)

    def packed() -> dict[str, str | None]:
        table = Work(tmp_path / "work").read("caption", 0, columns=["key", "caption"])
        return {row["key"]: row["caption"] for row in table.to_pylist()}

    (photos / "0.txt").rename(tmp_path / "0.txt")
    failed = data(str(photos), *SMALL, "--json")
    assert failed.code == 8 and failed.json["error"]["code"] == "partial_batch"
    assert "no picture was packed: 4 of 4: no caption" in failed.json["error"]["message"]
    assert "caption.text=TEXT" in failed.json["error"]["hint"] and (tmp_path / "work" / "report.html").is_file()
    (tmp_path / "0.txt").rename(photos / "0.txt")
    one = data("--set", "caption.text=a scene", *SMALL)
    assert one.code == 0 and "pack: 4 pictures in 1 tar" in one.err and "in 1 shard," in one.err
    assert packed() == {"photos/0.png": "my own words"} | {f"photos/{n}.png": "a scene" for n in (1, 2, 3)}
    settings = ("text=default", f"local={captioner}", "language=none", "max_tokens=16")
    own = data(*(word for text in settings for word in ("--set", text)), stage="caption")
    assert own.code == 0, own.err
    said = packed()
    assert all(text and set(text.split()) <= set(WORDS) for text in said.values()), said
    journal = (tmp_path / "work" / "caption" / "00000.jsonl").read_text().splitlines()
    assert {json.loads(line)["kind"] for line in journal} == {"dense"}


def test_a_work_folder_is_trained_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What `select` and `dedup` kept, with the captions of `caption`, out of a tar as well."""
    from tests.train.data_files import write_tar
    from train.lora.config import LoraConfig
    from train.lora.pictures import read_folder
    from train.lora.source import pixels

    inside = {f"in/{path.name}": path.read_bytes() for path in sorted(photos.iterdir())}
    write_tar(tmp_path / "some.tar", inside)
    work = tmp_path / "work"
    run = lens_inside(
        monkeypatch, capfd, "train", "data", "run", str(work), str(tmp_path / "some.tar"),
        "--set", "caption.text=a scene", *SMALL,
    )  # fmt: skip
    assert run.code == 0, run.err
    config = LoraConfig(run_dir=tmp_path / "run", pictures=work, model="nano", bases=(64,), trigger="sks,")
    folder = read_folder(config, (64,))
    assert {p.key.rpartition("/")[2][0]: p.caption for p in folder.training} == {
        "0": "sks, my own words", "1": "sks, a scene", "2": "sks, a scene", "3": "sks, a scene",
    }  # fmt: skip
    first = folder.training[0]
    assert first.member and pixels(first).shape == (*first.shape, 3)
