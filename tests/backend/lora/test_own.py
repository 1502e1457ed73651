"""A model that is a base with an adapter: one model everywhere, and the adapter weighed by a request.

Trusted because each network is held, bit for bit, to the base with the same file given as a LoRA, and the folder of
weights is the only thing that is not the package's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backend import presets
from backend.checkpoints import resolve
from backend.checkpoints.identity import identify_model
from backend.checkpoints.resolve import ModelFiles, of_preset, resolve_model
from backend.errors import ModelMissingError, UsageError
from backend.loaders import FileLoader
from backend.loading import load_transformer
from backend.lora.names import lora_sha256
from backend.lora.own import transformer_sha256
from backend.lora.write import Factors, Family, write_lora
from backend.memory.machine import plan_request
from backend.memory.plan import MachineMemory
from backend.picture.metadata import wish_from
from backend.presets import Component, OwnAdapter, Preset
from backend.requests import FoundModel, build_request
from backend.settings import Settings
from backend.types import GenerationRequest, LoraMode, LoraUse
from backend.wish import Wish
from lens_cli.terminal.wording import command_line, describe
from tests.backend import tiny_weights as tiny
from train.rl.config import refuse_tuned

NAMES = ("transformer_blocks.0.attn.img_qkv", "transformer_blocks.1.img_mlp.w1")
BASE = replace(presets.PRESETS["nano-base"], params=replace(presets.NANO, dit=tiny.DIT))
TUNED = replace(BASE, name="nano", adapters=(OwnAdapter(file="rl.safetensors", adjustable=True),))
TURBO = replace(
    BASE, name="nano-turbo", steps=4, guidance=1.0, distilled=True,
    adapters=(OwnAdapter(file="rl.safetensors"), OwnAdapter(file="turbo.safetensors")),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files of an embedded model, and two adapters beside them."""
    folder = tiny.write_embedded(tmp_path_factory.mktemp("package"))
    shapes = {name: tensor.shape for name, tensor in tiny.random_transformer().items()}
    for number, name in enumerate(("rl", "turbo")):
        g = torch.Generator().manual_seed(number)
        factors = {
            one: Factors(
                torch.randn(2, shapes[f"{one}.weight"][1], generator=g) / 4,
                torch.randn(shapes[f"{one}.weight"][0], 2, generator=g) / 4,
                4.0,
            )
            for one in NAMES
        }
        write_lora(folder / f"{name}.safetensors", factors, family=Family.comfyui, metadata={}, dtype=torch.float32)
    return folder


@pytest.fixture
def files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModelFiles]:
    monkeypatch.setattr(resolve, "nano_dir", lambda: folder)
    return {preset.name: of_preset(preset) for preset in (BASE, TUNED, TURBO)}


@torch.inference_mode()
def velocity(files: ModelFiles, *loras: LoraUse) -> Tensor:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(1, 12, tiny.DIT.in_channels, generator=g)
    text = torch.randn(1, 5, len(tiny.DIT.selected_layer_index), tiny.DIT.enc_hidden_dim, generator=g)
    return load_transformer(files, torch.float32, "cpu", loras)(x, torch.tensor([0.4]), text, (3, 4))


def use(path: Path, scale: float = 1.0) -> LoraUse:
    return LoraUse(path=str(path), sha256=lora_sha256(path), scale=scale, mode=LoraMode.fused)


def test_it_is_the_base_with_its_adapters_for_everybody_who_loads_it(
    files: dict[str, ModelFiles], folder: Path
) -> None:
    rl, turbo = use(folder / "rl.safetensors"), use(folder / "turbo.safetensors")
    base, tuned = files["nano-base"], files["nano"]
    assert torch.equal(velocity(tuned), velocity(base, rl)) and not torch.equal(velocity(tuned), velocity(base))
    assert torch.equal(velocity(files["nano-turbo"]), velocity(base, rl, turbo))
    for strength in (0.25, 1.5):
        weighed = tuned.with_strength(strength)
        assert torch.equal(velocity(weighed), velocity(base, replace(rl, scale=strength)))
    assert torch.equal(velocity(tuned.with_strength(0.0)), velocity(base))
    assert files["nano-turbo"].with_strength(0.0) == files["nano-turbo"], "only whole it is what it was distilled for"
    # A LoRA that somebody adds comes on top.
    torch.testing.assert_close(velocity(tuned, turbo), velocity(files["nano-turbo"]), rtol=1e-5, atol=1e-6)


def test_what_is_kept_is_told_from_the_bases(files: dict[str, ModelFiles], folder: Path) -> None:
    """In memory, on the disk, in a record and in the plan of memory."""
    each = [files["nano-base"], files["nano"], files["nano"].with_strength(0.5), files["nano-turbo"]]
    assert len({FileLoader(one).stamp(Component.transformer) for one in each}) == 4
    assert len({FileLoader(one).transformer_sha256() for one in each}) == 4
    assert len({FileLoader(one).stamp(Component.vae) for one in each}) == 1
    assert transformer_sha256(files["nano"].with_strength(0.0)) == transformer_sha256(each[0])
    named = identify_model(files["nano"]).sha256
    assert named["adapter"] == lora_sha256(folder / "rl.safetensors")
    assert {key: value for key, value in named.items() if key != "adapter"} == identify_model(each[0]).sha256
    assert files["nano"].total_bytes == each[0].total_bytes + (folder / "rl.safetensors").stat().st_size
    mapped = [plan_request(wish_for(one), one, MachineMemory(device="cpu", host_free=10**10)) for one in each[:2]]
    assert not mapped[1].model.mapped, "tensors with an adapter are no views of the file"


def wish_for(files: ModelFiles) -> GenerationRequest:
    return GenerationRequest(prompt="a", model=files.name, seeds=(0,), width=64, height=64, steps=2, guidance=1.0)


def built(files: ModelFiles, warned: list[str], **wish: Any) -> tuple[GenerationRequest, ModelFiles]:
    found = FoundModel(name=files.name, preset=files.preset, files=files)
    resolved = build_request(Wish(prompt="a fish", seeds=("1",), **wish), Settings(), warned.append, found=found)
    return resolved.request, resolved.need_files()


def test_a_request_says_how_strongly_and_a_record_gives_it_back(files: dict[str, ModelFiles]) -> None:
    warned: list[str] = []
    request, found = built(files["nano"], warned)
    assert request.rl_strength == 1.0 and found == files["nano"]
    request, found = built(files["nano"], warned, rl_strength=0.25)
    assert (request.rl_strength, found.adapters[0].strength) == (0.25, 0.25)
    assert "--rl-strength 0.25" in command_line(request, Wish()) and "RL strength 0.25" in describe(request)
    assert "--rl-strength" not in command_line(built(files["nano"], warned)[0], Wish())
    assert not warned
    request, found = built(files["nano-turbo"], warned, rl_strength=0.5)
    assert request.rl_strength is None and found == files["nano-turbo"]
    assert warned == ["--rl-strength 0.5 is ignored: nano-turbo has no adapter of its own that it could weigh"]
    with pytest.raises(UsageError, match=r"--rl-strength 1\.6 is outside 0\.\.1\.5"):
        built(files["nano"], warned, rl_strength=1.6)


@pytest.mark.parametrize(
    ("recorded", "again"), [({}, 0.0), ({"rl_strength": None}, 0.0), ({"rl_strength": 0.75}, 0.75)]
)
def test_a_picture_from_before_the_adapter_is_made_again_without_it(recorded: dict[str, float], again: float) -> None:
    record = {
        "prompt": "a", "model": {"name": "nano"}, "seed": 1, "width": 64, "height": 64, "steps": 2, "guidance": 1.0,
        "loras": [], "dtype": "float32", "encoder": "exact", "device": "cpu", "quant": None,
    }  # fmt: skip
    wish = wish_from({**record, **recorded}, "x.png")
    assert wish.rl_strength == again
    assert wish.overridden_by(Wish(model="lens")).rl_strength is None, (
        "another model has an adapter of its own, or none"
    )


def test_without_its_adapter_it_is_not_here_and_it_is_not_tuned_twice(
    files: dict[str, ModelFiles], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: Preset = replace(TUNED, adapters=(OwnAdapter(file="other.safetensors"),))
    with pytest.raises(ModelMissingError, match="are not in this installation"):
        of_preset(gone)
    assert not resolve_model(str(folder)).adapters, "a folder is what it holds, whatever lies beside it"
    monkeypatch.setattr(presets, "PRESETS", {"nano": TUNED, "nano-base": BASE})
    with pytest.raises(UsageError, match="a base with an adapter") as met:
        refuse_tuned(files["nano"])
    assert met.value.hint == "tune the base: --set model=nano-base"
    refuse_tuned(files["nano-base"])
