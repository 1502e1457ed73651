"""What lens says about LoRA files before anything loads: files that do not fit, names, scales, hashes, modes.

The keys are literal; the network's shapes come from the published parameters, so a real file would be judged the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from backend import paths
from backend.checkpoints.identity import known_sha256
from backend.errors import CheckpointError, LensError, UsageError
from backend.lora.keys import read_lora
from backend.lora.names import decide_modes, find_again, find_lora, known_loras, lora_sha256, parse_lora
from backend.model.tensors import transformer_shapes
from backend.types import LoraMode, LoraUse
from tests.backend import tiny_weights as tiny
from tests.backend.lora_files import HEADERS, K1, K2, LOW_RANK, MAGNITUDE, QKV

SHAPES = transformer_shapes(tiny.DIT)
NORM = "transformer_blocks.0.img_norm1"
A, B = torch.zeros(3, 64), torch.zeros(192, 3)
GOOD: dict[str, Tensor] = {f"{QKV}.lora_A.weight": A, f"{QKV}.lora_B.weight": B}


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)  # shared ones it refuses
    return path


# ------------------------------------------------------------------------------------------------ files that do not fit


@pytest.mark.parametrize(
    ("tensors", "metadata", "message", "hint"),
    [
        ({"double_blocks.0.img_attn.qkv.lora_A.weight": A}, None, "no key fits .*: double_blocks.0", "another model"),
        ({"lora_te1_encoder_layers_0.lora_down.weight": A}, None, "no key fits", "text encoder only"),
        ({f"{QKV}.something": A}, None, "no key fits .*: transformer_blocks.0.attn.img_qkv.something", None),
        ({}, None, "no key fits a Lens transformer: it has none", None),
        ({f"{QKV}.lora_A.weight": A}, None, "'up' that belongs to it is not", None),
        ({f"{QKV}.lora_B.weight": B}, None, "'down' that belongs to it is not", None),
        ({f"{QKV}.lora_A.weight": A, f"{QKV}.lora_B.weight": torch.zeros(192, 2)}, None, "their ranks differ", None),
        (
            {f"{QKV}.lora_A.weight": torch.zeros(3, 1536), f"{QKV}.lora_B.weight": torch.zeros(4608, 3)}, None,
            r"they make \[4608, 1536\], but 'transformer_blocks.0.attn.img_qkv' is \[192, 64\]", "another size",
        ),
        ({f"{QKV}.lora_A.weight": A[..., None, None], f"{QKV}.lora_B.weight": B}, None, "expected a matrix", None),
        ({f"{NORM}.lora_A.weight": A, f"{NORM}.lora_B.weight": B}, None, "is no linear", None),
        ({**GOOD, f"{QKV}.lora_mid.weight": torch.zeros(3, 3, 1, 1)}, None, "Tucker", None),
        ({**GOOD, f"{QKV}.lora_down.weight": A}, None, "say the same thing twice", None),
        ({**GOOD, f"{QKV}.alpha": torch.zeros(2)}, None, r"is \[2\] \(F32\), expected one number", None),
        ({**GOOD, f"{QKV}.alpha": torch.tensor(float("nan"))}, None, "is nan", None),
        ({f"{QKV}.alpha": torch.tensor(1.0)}, None, "stands alone", None),
        ({**GOOD, f"{QKV}.dora_scale": torch.zeros(7)}, None, "expected 192 outputs or 64 inputs", None),
        ({f"{QKV}.dora_scale": MAGNITUDE}, None, "without the one update", None),
        ({f"{QKV}.lokr_w1": K1}, None, "'lokr_w2_a' that belongs to it is not", None),
        ({f"{QKV}.lokr_w1": K2, f"{QKV}.lokr_w2": K2}, None, r"they make \[256, 64\]", None),
        ({f"{QKV}.lokr_w1": K1, f"{QKV}.lokr_w2": K2, f"{QKV}.lokr_t2": K2}, None, "Tucker", None),
        ({f"{QKV}.hada_w1_a": B, f"{QKV}.hada_w1_b": A, f"{QKV}.hada_w2_a": B}, None, "'hada_w2_b' that belongs", None),
        ({f"{QKV}.diff": torch.zeros(3, 3)}, None, r"expected \[192, 64\]", None),
        ({"transformer_blocks.0.img_mlp.w1.diff_b": torch.zeros(96)}, None, "has none", None),
        (GOOD, {"alpha": "many", "rank": "3"}, "its header states alpha = 'many'", None),
        (GOOD, {"alpha": "1", "rank": "0"}, "its header states rank = '0'", None),
        (GOOD, {"lora_adapter_metadata": "{"}, "lora_adapter_metadata: no JSON", None),
        (GOOD, {"lora_adapter_metadata": "[1]"}, "lora_adapter_metadata: no table", None),
        (GOOD, {"lora_adapter_metadata": '{"lora_alpha": "much"}'}, "its header states alpha = 'much'", None),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, message: str, hint: str | None, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_lora(path, SHAPES)
    assert str(path) in str(raised.value)
    assert hint is None or hint in (raised.value.hint or "")


def test_other_kinds_of_files(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.safetensors", tiny.random_transformer())
    with pytest.raises(CheckpointError, match="a whole Lens transformer, not a LoRA") as raised:
        read_lora(whole, SHAPES)
    assert "-m" in (raised.value.hint or "")
    folder = tiny.write_embedded(tmp_path / "model")
    with pytest.raises(CheckpointError, match="a gguf file"):
        read_lora(folder / "transformer.gguf", SHAPES)
    torch.save(GOOD, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="pickle") as raised:
        parse_lora(str(tmp_path / "x.pt"))
    assert ".safetensors" in (raised.value.hint or "")
    (tmp_path / "x.pt").rename(tmp_path / "y.safetensors")  # its name does not help it
    with pytest.raises(CheckpointError, match="pickle"):
        read_lora(tmp_path / "y.safetensors", SHAPES)
    (tmp_path / "z.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty file"):
        read_lora(tmp_path / "z.safetensors", SHAPES)


def test_keys_that_match_nothing_are_named(tmp_path: Path) -> None:
    extra = {
        "transformer_blocks.40.attn.img_qkv.lora_A.weight": A, "lora_te_text_model.lora_down.weight": A,
        "text_encoder.layers.0.lora_A.weight": A, f"{QKV}.set_weight": B,
    }  # fmt: skip
    use = parse_lora(str(save(tmp_path / "x.safetensors", {**GOOD, **extra})))
    said: list[str] = []
    decide_modes([use], tiny.DIT, quantised=False, warn=said.append)
    assert len(said) == 2 and all(line.startswith("x.safetensors: left aside") for line in said)
    assert "transformer_blocks.40.attn.img_qkv.lora_A.weight" in said[0] and "set_weight" in said[0]
    assert "lora_te_text_model" in said[1] and "text_encoder.layers.0" in said[1]
    decide_modes([parse_lora(str(save(tmp_path / "y.safetensors", GOOD)))], tiny.DIT, quantised=False, warn=said.append)
    assert len(said) == 2


# ----------------------------------------------------------------------------------------------------- names and scales


@pytest.mark.parametrize(
    ("tail", "name", "scale"),
    [
        ("", "x.safetensors", 1.0), ("=0.8", "x.safetensors", 0.8), ("=-1.5", "x.safetensors", -1.5),
        ("=0", "x.safetensors", 0.0), ("=1e-1", "x.safetensors", 0.1), ("", "a=b.safetensors", 1.0),
        ("=2", "a=b.safetensors", 2.0), ("", "a=0.5=c.safetensors", 1.0), ("=0.25", "a=0.5", 0.25),
    ],
)  # fmt: skip
def test_parse(tail: str, name: str, scale: float, tmp_path: Path) -> None:
    path = save(tmp_path / name, GOOD)
    use = parse_lora(f"{path}{tail}", LoraMode.fused)
    assert (use.path, use.scale, use.mode) == (str(path), scale, LoraMode.fused)
    assert use.sha256 == known_sha256(path)
    assert parse_lora(use.text, LoraMode.fused) == use


@pytest.mark.parametrize("text", ["", "=", "=0.5", "absent", "absent=0.5", "absent.safetensors", "/nowhere/x=y"])
def test_absent(text: str) -> None:
    with pytest.raises(UsageError, match="no LoRA is called") as raised:
        parse_lora(text)
    assert raised.value.exit_code == 2  # as for a model that is not there
    assert str(paths.loras_dir()) in (raised.value.hint or "")


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e9", "-101"])
def test_scales_that_cannot_be_meant(scale: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"outside -100\.\.100"):
        parse_lora(f"{save(tmp_path / 'x.safetensors', GOOD)}={scale}")


def test_the_folder_of_loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sky = save(paths.loras_dir() / "sky.safetensors", GOOD)
    ink = save(paths.loras_dir() / "styles" / "ink.safetensors", GOOD)
    assert known_loras() == {"sky": sky, "styles/ink": ink}
    assert find_lora("sky") == find_lora("sky.safetensors") == sky and find_lora("styles/ink") == ink
    assert parse_lora("sky=0.8").scale == 0.8
    with pytest.raises(UsageError) as raised:
        find_lora("skye")
    assert raised.value.hint == "one of sky, styles/ink, or a path"
    (tmp_path / "sky").mkdir()  # a folder without LoRAs does not hide the name
    assert find_lora("sky") == sky
    here = save(tmp_path / "sky" / "adapter_model.safetensors", GOOD)  # one with a LoRA is one, as PEFT saves them
    save(tmp_path / "sky" / "other.safetensors", GOOD)
    assert find_lora("sky") == here
    here.unlink()
    save(tmp_path / "sky" / "more.safetensors", GOOD)
    with pytest.raises(UsageError, match=r"holds 2 files that may be a LoRA: more\.safetensors, other\.safetensors"):
        find_lora("sky")


def test_found_again_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture holds a base name and a hash; the file may lie in another place, or have another name."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = save(tmp_path / "far" / "x.safetensors", GOOD)
    recorded = LoraUse(path="x.safetensors", sha256=known_sha256(path), scale=0.7, mode=LoraMode.fused)
    assert find_again(recorded) == replace(recorded, path=str(path))  # it was hashed there before
    elsewhere = path.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UsageError, match=recorded.sha256) as raised:
        find_again(recorded)
    assert "--lora PATH=0.7" in (raised.value.hint or "")
    save(Path("x.safetensors"), {**GOOD, f"{QKV}.alpha": torch.tensor(2.0)})  # the name, but not the file
    with pytest.raises(UsageError, match="which was not found"):
        find_again(recorded)
    paths.loras_dir().mkdir(parents=True)
    renamed = elsewhere.rename(paths.loras_dir() / "renamed.safetensors")
    assert find_again(recorded).path == str(renamed)


def test_the_hash_holds_what_decides_the_scale(tmp_path: Path) -> None:
    path = save(tmp_path / "adapter_model.safetensors", GOOD)
    assert lora_sha256(path) == known_sha256(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 3}))
    assert lora_sha256(path) != known_sha256(path)
    other = save(tmp_path / "x.safetensors", GOOD)
    assert lora_sha256(other) == known_sha256(other)  # the config is not this file's


# ---------------------------------------------------------------------------------------------------------------- modes


def test_settle(tmp_path: Path) -> None:
    said: list[str] = []

    def mode(case: str, wish: LoraMode, quantised: bool) -> LoraMode:
        said.clear()
        path = {**HEADERS, **LOW_RANK}[case].write(tmp_path / f"{case}.safetensors")
        (use,) = decide_modes([parse_lora(str(path), wish)], tiny.DIT, quantised=quantised, warn=said.append)
        return use.mode

    auto, fused, live = LoraMode.auto, LoraMode.fused, LoraMode.live
    assert mode("kohya", auto, False) is fused and not said
    assert mode("kohya", auto, True) is live and not said
    assert mode("kohya", live, False) is live and not said
    assert mode("kohya", fused, True) is fused and "it is fused before" in said[0]
    assert mode("LoKr", auto, False) is fused and not said
    assert mode("LoKr", auto, True) is fused and "its LoKr updates are fused before" in said[0]
    assert mode("DoRA", auto, True) is fused and "its DoRA (low-rank) updates are" in said[0]
    assert mode("modulation", auto, True) is fused and not said
    for case, why in (("LoKr", "whole matrices only"), ("DoRA", "DoRA"), ("modulation", "no linear of a block")):
        with pytest.raises(LensError, match=why) as raised:
            mode(case, live, True)
        assert raised.value.exit_code == 2
