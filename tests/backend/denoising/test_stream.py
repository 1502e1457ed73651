"""Streaming a transformer's blocks: the same bits as a resident network, in any order that copies may take.

Why it can be trusted: the yardstick is the network itself with all its blocks in memory. What a GPU does out of order
is played by `LateCopies`, which spoils a slot the moment a copy may begin and fills it only when somebody waits for
it: a slot that is overwritten too early, or read too soon, turns the result into NaN.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from backend.denoising.stream import Copies, PlainCopies, StreamedBlocks


class Step(nn.Module):
    """A block with weights of several dtypes, a buffer, and an odd number of bytes."""

    scale: Tensor
    absent: Tensor | None

    def __init__(self, seed: int, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(width, width).to(torch.bfloat16)
        self.packed = nn.Parameter(
            torch.randint(0, 255, (width,), dtype=torch.uint8, generator=generator), requires_grad=False
        )
        self.register_buffer("scale", torch.rand(3 + seed % 2, generator=generator))  # blocks of unequal size
        self.register_buffer("absent", None)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(width, width, generator=generator))
            self.linear.bias.copy_(torch.randn(width, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) + self.packed.float() / 255 * self.scale.sum()).to(x.dtype)


class LateCopies:
    """Copies that happen as late as allowed."""

    def __init__(self) -> None:
        self.pending: dict[int, Sequence[tuple[Tensor, Tensor]]] = {}
        self.busy: set[int] = set()  # slots whose block is running
        self.started = 0

    def start(self, slot: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        assert slot not in self.busy, "a copy may not begin before the slot's block is done"
        for _, target in pairs:
            target.view(torch.uint8).fill_(255)  # NaN as float, wrong as anything else
        self.pending[slot] = pairs
        self.started += 1

    def wait(self, slot: int) -> None:
        self.busy.add(slot)
        for source, target in self.pending.pop(slot, ()):
            target.copy_(source)

    def used(self, slot: int) -> None:
        self.busy.remove(slot)


def steps(count: int) -> list[Step]:
    return [Step(seed) for seed in range(count)]


def run(blocks: Sequence[nn.Module] | StreamedBlocks[Step], x: Tensor) -> Tensor:
    for block in blocks.blocks() if isinstance(blocks, StreamedBlocks) else blocks:
        x = block(x)
    return x


X = torch.linspace(-2, 2, 12, dtype=torch.bfloat16).view(2, 6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("slots", [2, 3, 5])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "in place"])
def test_bitwise_equal_to_resident(count: int, slots: int, packed: bool) -> None:
    resident = steps(count)
    wanted = run(resident, X)
    for copies in (PlainCopies(), LateCopies()):
        streamed = StreamedBlocks(copy.deepcopy(resident), "cpu", slots=slots, packed=packed, copies=copies)
        for _ in range(3):  # the second and third pass begin with what the first left in the slots
            assert torch.equal(run(streamed, X), wanted)


def test_copies_a_pass() -> None:
    """Each block once, and none at all where every block has a slot."""
    for count, slots, per_pass in ((8, 2, 8), (9, 3, 9), (7, 3, 7), (3, 3, 0), (2, 5, 0)):
        copies = LateCopies()
        streamed = StreamedBlocks(steps(count), "cpu", slots=slots, copies=copies)
        run(streamed, X)
        first = copies.started
        assert first <= count + slots - 1
        run(streamed, X)
        run(streamed, X)
        assert copies.started - first == 2 * per_pass


def test_next_block_is_under_way_while_one_runs() -> None:
    """Double buffering: when a block is handed out, the copy of the following one has begun."""
    copies = LateCopies()
    for index, _ in enumerate(StreamedBlocks(steps(6), "cpu", slots=2, copies=copies).blocks()):
        assert set(copies.pending) == ({1 - index % 2})


def test_an_abandoned_pass_does_no_harm() -> None:
    resident = steps(5)
    streamed = StreamedBlocks(copy.deepcopy(resident), "cpu", slots=3, copies=LateCopies())
    for stop in (0, 1, 3):
        for index, block in enumerate(streamed.blocks()):
            block(X)
            if index == stop:
                break
        assert torch.equal(run(streamed, X), run(resident, X))


def test_memory_is_slots_on_the_device_and_all_on_the_host() -> None:
    resident = steps(6)
    stored = sum(t.nbytes for block in resident for t in (*block.parameters(), *block.buffers()))
    streamed = StreamedBlocks(resident, "cpu", slots=2)
    held = sum(part.nbytes for block in streamed._host for part in block)
    assert stored <= held <= stored + 6 * 4 * 256  # four tensors a block, each aligned
    assert all(t.is_meta for block in resident for t in (*block.parameters(), *block.buffers()))
    run(streamed, X)
    lying = {t.untyped_storage().data_ptr() for block in resident for t in (*block.parameters(), *block.buffers())}
    assert len(lying) == 2
    wanted = run(streamed, X)
    streamed.release()
    assert all(t.is_meta for block in resident for t in (*block.parameters(), *block.buffers()))
    assert torch.equal(run(streamed, X), wanted)  # and comes back by itself


def test_within_inference_mode_and_after_it() -> None:
    streamed = StreamedBlocks(steps(4), "cpu", slots=2)
    with torch.inference_mode():
        first = run(streamed, X)
    with torch.no_grad():
        assert torch.equal(run(streamed, X), first)


def test_what_cannot_be_streamed() -> None:
    class Special(Tensor):
        pass

    block = Step(0)
    block.scale = torch.rand(3).as_subclass(Special)
    with pytest.raises(TypeError, match=r"scale is a Special"):
        StreamedBlocks([block], "cpu")
    with pytest.raises(ValueError, match="one slot"):
        StreamedBlocks(steps(2), "cpu", slots=1)


def test_the_yardstick_sees_a_missing_wait() -> None:
    """Proof that `LateCopies` catches what it is there for."""

    class Careless(LateCopies):
        def wait(self, slot: int) -> None:
            self.busy.add(slot)

    careless: Copies = Careless()
    assert not torch.equal(run(StreamedBlocks(steps(3), "cpu", slots=2, copies=careless), X), run(steps(3), X))
