"""What an adapter made of a model: pairs from the same noise, counted from the pictures on the disk.

Trusted because an adapter without strength must change nothing at all, and what is counted for another is counted here
again from the files.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from PIL import Image

from backend.checkpoints.resolve import resolve_model
from backend.errors import UsageError
from backend.lora.write import Factors, Family, write_lora
from backend.model.tensors import transformer_shapes
from lens_cli.work.train.rl_measure import as_json, named, table
from train.evals import nano
from train.evals.verifier.verify import Expectation, Item, Verdict
from train.rl import measure as measuring
from train.rl.measure import MeasurePlan, measure, paired


def top_is_bright(picture: Image.Image, expectation: Expectation) -> Verdict:
    """A verdict that costs nothing, and that some pictures of noise get and some do not."""
    pixels = np.asarray(picture, dtype=float)
    return Verdict(items=(Item(what="top", holds=bool(pixels[: len(pixels) // 2].mean() > pixels.mean())),), found=())


@pytest.fixture
def adapter(tmp_path: Path, tiny: Path) -> Path:
    name, g = "transformer_blocks.0.attn.img_qkv", torch.Generator().manual_seed(0)
    rows, columns = transformer_shapes(resolve_model(str(tiny)).preset.params.dit)[f"{name}.weight"]
    factors = Factors(torch.randn(2, columns, generator=g), torch.randn(rows, 2, generator=g), 2.0)
    path = tmp_path / "strong" / "lora.safetensors"
    path.parent.mkdir()
    write_lora(path, {name: factors}, family=Family.comfyui, metadata={}, dtype=torch.float32)
    return path


def test_pairs_are_counted_from_the_pictures(
    tmp_path: Path, tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "verify", top_is_bright)
    said: list[str] = []
    plan = MeasurePlan(
        model=str(tiny), adapters=named([f"{adapter}=0", str(adapter)]), out=tmp_path / "out", images=2, limit=2,
        guidances=(1.0,), steps=1, base=64, scenes=2, compute="float32",
    )  # fmt: skip
    found = measure(plan, said.append)
    none, strong = "strong=0", "strong"
    assert list(plan.adapters) == [none, strong] and len(said) >= 3
    # Without strength nothing changed: not a verdict, not a pixel, not a loss.
    assert found.compared(1.0, none).micro.won == found.compared(1.0, none).micro.lost == 0
    assert found.loss_change(none) == (0.0, 0.0)
    folders = {name: tmp_path / "out" / f"{name}-guidance-1" for name in ("base", none, strong)}
    pictures = {name: sorted((folder / "pictures").iterdir()) for name, folder in folders.items()}
    bytes_of = {name: [path.read_bytes() for path in paths] for name, paths in pictures.items()}
    assert bytes_of["base"] == bytes_of[none] != bytes_of[strong] and len(bytes_of["base"]) == 4
    # What is told of the other is what the files hold.
    pixels = {name: [np.asarray(Image.open(path), dtype=float) / 255 for path in pictures[name]] for name in pictures}
    right = {name: [grey[: len(grey) // 2].mean() > grey.mean() for grey in each] for name, each in pixels.items()}
    pairs = found.compared(1.0, strong).micro
    changes = [int(b) - int(a) for a, b in zip(right["base"], right[strong], strict=True)]
    assert (pairs.won, pairs.lost, pairs.total) == (changes.count(1), changes.count(-1), 4)
    spreads = [
        float(((a - b) ** 2).mean() ** 0.5) for a, b in zip(pixels[strong][::2], pixels[strong][1::2], strict=True)
    ]
    assert found.at[1.0][strong].spread == pytest.approx(mean(spreads))
    change, half = found.loss_change(strong)
    assert change == pytest.approx(mean(found.losses[strong]) - mean(found.losses["base"])) and half > 0
    text = "\n".join(table(plan, found))
    assert "strong against" in text and f"+{pairs.won} -{pairs.lost} of 4" in text and "flow-matching loss" in text
    assert as_json(plan, found)["at"]["1"][strong]["against_base"]["micro"]["won"] == pairs.won

    def never(*_: object) -> torch.Tensor:
        raise AssertionError("it is there")

    monkeypatch.setattr(measuring, "draw", never)
    assert measure(plan, said.append).compared(1.0, strong).micro == pairs


def test_what_cannot_be_compared_is_said(tmp_path: Path, adapter: Path) -> None:
    assert paired([1.0, 2.0, 3.0], [1.5, 2.0, 2.5]) == pytest.approx((0.0, 1.96 * 0.5 / 3**0.5))
    with pytest.raises(UsageError, match="two adapters would be called 'strong'"):
        named([str(adapter), str(adapter)])
    with pytest.raises(UsageError, match="no adapter"):
        MeasurePlan(model="nano", adapters={}, out=tmp_path)
    with pytest.raises(UsageError, match="cannot be called 'base'"):
        MeasurePlan(model="nano", adapters={"base": named([str(adapter)])["strong"]}, out=tmp_path)
