"""Packed pictures and other frozen networks as the source of batches.

Trustworthy because the tars are real ones that packing wrote, pictures carry their number in their colour and their
caption, the language model is transformers' own class, and its features are compared with its own hidden states.
"""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from backend.errors import CheckpointError, FileError, UsageError
from tests.train import packed as made
from tests.train import ranks
from tests.train.changed import changed
from train import pretrain
from train.batches import ablations, encoders
from train.batches.encoders import Encoders
from train.batches.open_packs import Opened, open_packed
from train.batches.packed import PackedSource
from train.config import Base, PackedData, PretrainConfig, Stage, locate
from train.data.tars.reader import PackedIndex
from train.run.batch import Group

SIZES = ((64, 64), (128, 64), (40, 40))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    made.pack(folder, [range(0, 20), range(20, 36)], SIZES)
    return folder


@pytest.fixture(scope="module", autouse=True)
def held(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures, of the same shapes, beside those that are trained on."""
    folder = work.parent / f"{work.name}-held"
    made.pack(folder, [range(100, 112)], SIZES)
    return folder


def config(work: Path, run_dir: Path) -> PretrainConfig:
    held = work.parent / f"{work.name}-held"
    mix = (Base(base=32, batch=3), Base(base=64, batch=2))
    stage = Stage(base=64, steps=4, batch=2, groups=2, mix=mix, learning_rate=1e-2)
    return changed(
        ranks.config(run_dir),
        {"saving.validate_every": 2},
        data=PackedData(work=work, held_out=held),
        stages=(stage,),
    )


def opened(plan: PretrainConfig) -> Opened:
    assert isinstance(plan.data, PackedData)
    return open_packed(plan.data, plan.stages, plan.seed)


def seen_through(networks: str = "these") -> Encoders:
    """Networks whose latents are the picture's colour, and whose features are the caption's number."""

    def images(pictures: np.ndarray) -> torch.Tensor:
        count, height, width, _ = pictures.shape
        colour = torch.from_numpy(pictures[:, 0, 0].astype(np.float32))
        return colour.repeat(1, 43)[:, None, :128].expand(count, height * width // 256, 128)

    def texts(captions: Any) -> list[torch.Tensor]:
        return [torch.full((2 + int(text.split()[1]) % 3, 2, 24), float(text.split()[1])) for text in captions]

    return Encoders(images, texts, networks=lambda: networks)


def test_pictures_meet_their_captions(work: Path, tmp_path: Path) -> None:
    plan = config(work, tmp_path)
    source = PackedSource(plan, opened(plan), seen_through(), torch.device("cpu"))
    for step in range(4):
        at = locate(plan.stages, step)
        groups = source.groups(at)
        assert groups == source.groups(at) and len(groups) == 2
        for grid, refs in groups:
            loaded = source.load(at, Group(grid, tuple(refs), tuple(range(len(refs))), (1.0,) * len(refs)))
            assert loaded.x0_BNC.shape == (len(refs), grid[0] * grid[1], 128)
            for i, name in enumerate(loaded.names):
                number = int(name.removeprefix("here/").removesuffix(".png"))
                red, green = (int(loaded.x0_BNC[i, 0, channel]) for channel in (0, 1))
                assert red + 256 * green == number  # its colour …
                real = loaded.text_BLTF[i, loaded.mask_BL[i]]
                assert len(real) == 2 + number % 3 and bool((real == number).all())  # … and its caption
            assert loaded.mask_BL.shape[1] % 16 == 0


def test_a_brief_caption_where_it_is_asked_for(work: Path, tmp_path: Path) -> None:
    plan = changed(config(work, tmp_path), {"data.brief_share": 0.5})
    source = PackedSource(plan, opened(plan), seen_through(), torch.device("cpu"))
    index = source.index.buckets[0]
    sample = source.opened.readers[0].sample(index, 0)  # a packed picture with both captions is what this needs
    both = replace(sample, record={**sample.record, "brief": "short"})
    chosen = [source._caption(both, str(step)) for step in range(200)]
    assert set(chosen) == {"short", sample.text} and 70 < chosen.count("short") < 130
    assert source._caption(both, "7") == chosen[7]
    assert {source._caption(sample, str(step)) for step in range(20)} == {sample.text}  # it has no brief one


def test_two_stages_that_are_alike_see_other_orders(work: Path, tmp_path: Path) -> None:
    plan = config(work, tmp_path)
    stage = plan.stages[0]
    plan = replace(plan, stages=(stage, stage))
    source = PackedSource(plan, opened(plan), seen_through(), torch.device("cpu"))
    orders = [
        [source.groups(locate(plan.stages, place * stage.steps + step)) for step in range(stage.steps)]
        for place in range(2)
    ]
    assert orders[0] != orders[1]


def test_a_run_on_packed_pictures_resumes(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "load", lambda *_: seen_through())

    def curve(folder: Path) -> list[tuple[float, ...]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(row["step"], row["loss"], row.get("validation", 0.0)) for row in rows]

    whole, cut = config(work, tmp_path / "whole"), config(work, tmp_path / "cut")
    pretrain.run(whole)
    half = replace(cut, stages=(replace(cut.stages[0], steps=2),))
    pretrain.run(half)
    pretrain.run(cut)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert any(validation > 0 for _, _, validation in curve(tmp_path / "whole"))

    with monkeypatch.context() as upgraded:
        upgraded.setattr(encoders, "load", lambda *_: seen_through("others"))
        with pytest.raises(CheckpointError, match="another autoencoder or text encoder"):
            pretrain.run(cut)
    other = tmp_path / "other"
    made.pack(other, [range(0, 30)], SIZES)
    with pytest.raises(CheckpointError, match="other packed pictures"):
        pretrain.run(changed(cut, {"data.work": other}))
    with pytest.raises(UsageError, match="no batch size is given"):
        pretrain.run(replace(cut, stages=(replace(cut.stages[0], mix=()),), run_dir=tmp_path / "third"))
    assert PackedIndex.load(work / "pack").fingerprint != PackedIndex.load(other / "pack").fingerprint


def test_what_the_config_names_is_opened_before_any_network(work: Path, tmp_path: Path) -> None:
    """A wrong folder of held-out pictures, and a later stage that the data do not fit."""
    plan = config(work, tmp_path)
    with pytest.raises(FileError, match="none/pack holds no packed pictures"):
        opened(changed(plan, {"data.held_out": tmp_path / "none"}))
    second = replace(plan.stages[0], mix=(Base(base=64, batch=2),))
    with pytest.raises(UsageError, match="holds pictures of base 32"):
        opened(replace(plan, stages=(plan.stages[0], second)))
    opened(replace(plan, stages=(plan.stages[0], replace(second, steps=0))))


def test_pictures_that_are_trained_on_are_not_held_out(work: Path, tmp_path: Path) -> None:
    plan = config(work, tmp_path)
    with pytest.raises(UsageError, match="the very pictures that are trained on") as caught:
        opened(changed(plan, {"data.held_out": work}))
    assert "held_out=none" in (caught.value.hint or "")
    made.pack(tmp_path / "some", [range(0, 3), range(100, 103)], SIZES)  # three of the 36, and three others
    with pytest.raises(UsageError, match=r"3 of the 6 pictures of held_out=.*/some are trained on too"):
        opened(changed(plan, {"data.held_out": tmp_path / "some"}))
    assert opened(changed(plan, {"data.held_out": None})).held is None


def test_a_stage_that_has_begun_keeps_its_batches(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Position k of a stage is group k: with other groups a step is elsewhere. Stages to come may be anything."""
    monkeypatch.setattr(encoders, "load", lambda *_: seen_through())
    plan = changed(config(work, tmp_path / "run"), {"saving.validate_every": 100})
    (first,) = plan.stages
    pretrain.run(replace(plan, stages=(replace(first, steps=2), replace(first, groups=1, steps=1))))

    def goes_on(*stages: Stage) -> PretrainConfig:
        return replace(plan, stages=stages)

    begun = replace(first, steps=2), replace(first, groups=1, steps=2)
    other = tuple(replace(base, batch=1) for base in first.mix)
    for wrong in (
        (replace(begun[0], groups=3), begun[1]),
        (begun[0], replace(begun[1], mix=other)),
        (replace(begun[0], steps=1), begun[1]),
    ):
        with pytest.raises(CheckpointError, match="would jump in the order of its pictures; it began with groups=2"):
            pretrain.run(goes_on(*wrong, first))
    pretrain.run(goes_on(*begun, replace(first, groups=5, mix=other, steps=1)))


def test_another_language_model_reads_the_captions(tmp_path: Path) -> None:
    """Qwen3's class, tiny: the features are its own hidden states before the last norm, and padding changes nothing."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["[UNK]", "a", "red", "ball", "on", "the", "sea"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    shape = Qwen3Config(
        vocab_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=32,
    )  # fmt: skip
    model: Any = Qwen3Model(shape).eval()
    model.save_pretrained(tmp_path)
    plan = config(tmp_path, tmp_path)
    texts, about = ablations.language_model(str(tmp_path), plan.params, plan.template, torch.device("cpu"))
    before = about()
    captions = ["a red ball", "a ball on the red sea"]
    for caption, features in zip(captions, texts(captions), strict=True):
        ids = torch.tensor([tokenizer.encode(caption).ids])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        expected = torch.stack([states[1][0], states[2][0]], 1)  # hidden_states[0] is the embedding
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    alone = [texts([caption])[0] for caption in captions]
    with ThreadPoolExecutor(4) as pool:  # validation encodes while the next steps are encoded ahead
        together = list(pool.map(lambda i: texts([captions[i % 2]])[0], range(40)))
    assert all(torch.equal(found, alone[i % 2]) for i, found in enumerate(together))
    assert about() == before  # the name that features are kept by: of the weights and of the words
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    _, about = ablations.language_model(str(tmp_path), plan.params, plan.template, torch.device("cpu"))
    assert about() != before and about()["tokenizer"] == before["tokenizer"]
    with pytest.raises(UsageError, match="is 24 wide and has 3 blocks"):
        wrong = replace(plan.params, enc_hidden_dim=32)
        ablations.language_model(str(tmp_path), wrong, plan.template, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------------ cache


def counting(seen: list[str], weights: str = "a") -> Encoders:
    """Networks that note what they encode, and whose last bits depend on what is encoded together, as real ones' do."""
    plain = seen_through()

    def images(pictures: np.ndarray) -> torch.Tensor:
        seen.extend("picture" for _ in pictures)
        return plain.images(pictures) * (1 + 1e-6 * len(pictures))

    def texts(captions: Any) -> list[torch.Tensor]:
        seen.extend(captions)
        return [features * (1 + 1e-6 * len(captions)) for features in plain.texts(captions)]

    return Encoders(images, texts, identify=lambda: (f"vae {weights}", f"encoder {weights}"))


def run_cached(plan: PretrainConfig, monkeypatch: pytest.MonkeyPatch, weights: str = "a") -> tuple[Any, list[str]]:
    seen: list[str] = []
    monkeypatch.setattr(encoders, "load", lambda *_: counting(seen, weights))
    pretrain.run(plan)
    rows = [json.loads(line) for line in (plan.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row.get("grad_norm"), row.get("validation")) for row in rows], seen


def test_what_is_kept_is_encoded_once_and_is_the_same(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cold, warm, half filled with a damaged file, and in passes of one: the same numbers bit for bit."""
    plan = changed(config(work, tmp_path / "cold"), {"data.cache": tmp_path / "cache"})
    cold, first = run_cached(plan, monkeypatch)
    kept = {name: sorted((tmp_path / "cache" / name).iterdir()) for name in ("latents", "texts")}
    assert len(kept["latents"]) == first.count("picture") > 0
    captions = [one for one in first if one != "picture"]
    assert len(kept["texts"]) == len(captions) == len(set(captions))
    warm, second = run_cached(replace(plan, run_dir=tmp_path / "warm"), monkeypatch)
    assert warm == cold and second == []
    kept["latents"][0].unlink()
    data = bytearray(kept["texts"][1].read_bytes())
    data[-1] ^= 1
    kept["texts"][1].write_bytes(data)
    mended, third = run_cached(changed(plan, {"machine.micro_batch": 1}, run_dir=tmp_path / "mended"), monkeypatch)
    assert len(third) == 2 and "picture" in third  # what was taken away, and what was damaged
    assert [row[1] for row in mended] == pytest.approx([row[1] for row in cold], rel=1e-5)  # sums in another order
    _, other = run_cached(replace(plan, run_dir=tmp_path / "other"), monkeypatch, weights="b")
    assert sorted(other) == sorted(first)  # other networks share nothing


def test_a_full_disk_leaves_no_half_entry(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = changed(config(work, tmp_path / "run"), {"data.cache": tmp_path / "cache"})
    (tmp_path / "cache" / "texts").mkdir(parents=True)
    left = tmp_path / "cache" / "texts" / ".lens-killed.tmp"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    fsync = os.fsync

    def full(handle: int) -> None:
        if list((tmp_path / "cache").glob("*/.lens-*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match="no space left on device") as caught:
            run_cached(plan, patch)
    assert "cache=none" in (caught.value.hint or "")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_networks_of_memory_cannot_be_kept(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "load", lambda *_: seen_through())
    with pytest.raises(UsageError, match="only in memory"):
        pretrain.run(changed(config(work, tmp_path / "run"), {"data.cache": tmp_path / "cache"}))
