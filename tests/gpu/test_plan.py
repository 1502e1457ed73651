"""The memory plan on a GPU: streamed blocks give resident bits, a cap is kept, a prediction is the allocator's truth.

Trustworthy because the peaks are the allocator's own, of a child process that does nothing else, with the published
model's shapes and random weights. No run of this file has been seen yet.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from backend.denoising.stream import StreamedBlocks
from backend.memory.footprint import CUDA_CONTEXT, GB
from tests.lens_cli.cli import lens

# --vram: the most that the allocator may have reserved at 1024 x 1024, exact bfloat16 (the last row: 4-bit linears).
GOALS = [("24GB", (), 11.0), ("12GB", (), 8.0), ("8GB", (), 7.0), ("6GB", (), 4.5), ("4GB", ("--quant", "nf4"), 3.5)]


def test_streamed_is_resident_bit_for_bit() -> None:
    """Blocks large enough that copies and products overlap, in more passes than there are slots."""
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Linear(2048, 2048), nn.Tanh()).to(torch.bfloat16) for _ in range(12)]
    resident = [copy.deepcopy(block).to("cuda") for block in blocks]
    x = torch.randn(512, 2048, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        wanted = x
        for block in resident:
            wanted = block(wanted)
        for slots in (2, 3, 12):
            for packed in (True, False):
                streamed = StreamedBlocks(copy.deepcopy(blocks), "cuda", slots=slots, packed=packed)
                for _ in range(4):
                    y = x
                    for block in streamed.blocks():
                        y = block(y)
                    assert torch.equal(y, wanted)
                streamed.release()


def test_slots_given_back_are_written_to_no_more() -> None:
    """The next pass's first blocks are under way when a pass ends; whoever gets their memory must not see them."""
    blocks = [nn.Linear(4096, 4096, device="cpu").to(torch.bfloat16).requires_grad_(False) for _ in range(6)]
    streamed = StreamedBlocks(blocks, "cuda", slots=3)
    for _ in range(5):
        for _block in streamed.blocks():
            pass
        streamed.release()
        guests = [torch.zeros(streamed.slot_bytes, dtype=torch.uint8, device="cuda") for _ in range(3)]
        torch.cuda.synchronize()
        assert not any(bool(guest.any()) for guest in guests)
        del guests


@pytest.mark.parametrize(("vram", "more", "most"), GOALS, ids=[row[0] for row in GOALS])
def test_peak_is_predicted_and_below_its_goal(vram: str, more: tuple[str, ...], most: float) -> None:
    run = lens(
        "bench", "--random", "lens", "--size", "1024x1024", "--steps", "6", "--guidance", "5", "--runs", "1",
        "--device", "cuda", "--vram", vram, "--json", *more,
        real=True, timeout=1200,
    )  # fmt: skip
    assert run.code == 0, run.err
    measured: Any = run.json["data"]["points"][0]
    plan: Any = measured["plan"]
    peaks = {part: row["peak_bytes"] for part, row in measured["phases"].items() if row["peak_bytes"] is not None}
    for stage in ("denoise", "decode"):
        reserved = peaks[stage] + CUDA_CONTEXT
        assert reserved == pytest.approx(plan["peak"][stage], rel=0.1), (stage, plan["line"])
    assert max(peaks.values()) <= most * GB
    assert max(peaks.values()) <= plan["cap"]
