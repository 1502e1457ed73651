"""A transformer's blocks in host memory, run through a few slots of device memory: any card that holds three blocks.

Every block keeps its place: block i always lies in slot i modulo `slots`, so its module is given views of that slot
once, and streaming is nothing but copying one run of bytes before a block's turn. A copy stream runs ahead of the
arithmetic; two events a slot keep them apart (the bytes have arrived; the block that lay here is done). The order goes
round, so that the first blocks of the next pass arrive while the last of this one run. With as many slots as blocks
nothing is ever copied twice.

The bytes are the same as a resident network's, so the results are too, bit for bit. What it costs: host memory for
all blocks (pinned, which CUDA's host allocator rounds up to a power of two a block), and a pass takes at least
bytes / bandwidth: 5.4 GB in bfloat16, 0.22 s over PCIe 4 x16 (calculated).

Knows nothing about what a block computes; any modules whose weights are plain parameters and buffers can be streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from backend.kernels import switches
from backend.memory.plan import SLOTS
from backend.model.transformer import LensBlock, LensTransformer2DModel

ALIGNMENT = 256  # bytes; what CUDA's own allocations and every vectorised kernel are content with
Block = TypeVar("Block", bound=nn.Module)


class Copies(Protocol):
    """How bytes reach a slot, and how the arithmetic and the copies wait for each other."""

    def start(self, slot: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Begin to copy each (from host, to the slot); may not touch the slot before its last `used`."""
        ...

    def wait(self, slot: int) -> None:
        """What is enqueued from now on sees the slot's new bytes."""
        ...

    def used(self, slot: int) -> None:
        """Everything that reads the slot has been enqueued."""
        ...


class PlainCopies:
    """At once, where the caller stands: for a CPU, and where a stream of their own is not wanted."""

    def start(self, slot: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for source, target in pairs:
            target.copy_(source)

    def wait(self, slot: int) -> None:
        pass

    def used(self, slot: int) -> None:
        pass


class StreamCopies:
    """On a CUDA stream of their own. Asynchronous from pinned memory only; from other memory the host waits."""

    def __init__(self, device: torch.device, slots: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._arrived = [torch.cuda.Event() for _ in range(slots)]
        self._free = [torch.cuda.Event() for _ in range(slots)]
        for slot in range(slots):
            self.used(slot)  # the slot's memory may have belonged to work that is still enqueued

    def start(self, slot: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free[slot])
            for source, target in pairs:
                target.copy_(source, non_blocking=True)
                target.record_stream(self._stream)  # a slot given back meanwhile is nobody else's before the copy ends
            self._arrived[slot].record(self._stream)

    def wait(self, slot: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])

    def used(self, slot: int) -> None:
        self._free[slot].record(torch.cuda.current_stream(self._device))


def copies_to(device: torch.device, slots: int) -> Copies:
    """What fits the device, and the switch."""
    ahead = device.type == "cuda" and not switches.STREAM.is_plain
    return StreamCopies(device, slots) if ahead else PlainCopies()


@dataclass(frozen=True)
class _Place:
    """Where one tensor of a block lies: its owner's table and key, and its bytes within the slot."""

    table: dict[str, Tensor | None]
    key: str
    parameter: bool
    dtype: torch.dtype
    shape: torch.Size
    start: int
    end: int

    def view(self, slot: Tensor) -> Tensor:
        return slot[self.start : self.end].view(self.dtype).view(self.shape)


class StreamedBlocks(Generic[Block]):
    """A source of blocks for the denoiser. Takes the given modules over: their own tensors are let go one by one."""

    def __init__(
        self,
        blocks: Sequence[Block],
        device: torch.device | str,
        *,
        slots: int = 3,
        packed: bool = True,
        copies: Copies | None = None,
    ) -> None:
        """`blocks` lie on the CPU. `packed`: copied into pinned host memory (plain memory where the device is a CPU);
        else read from where they are, such as a memory-mapped file. `copies`: None: what fits the device.

        Raises TypeError for a block with a tensor of another kind than plain parameters and buffers (bitsandbytes'
        4-bit weights are one), MemoryError where the host cannot pin as much.
        """
        if slots < 2:
            raise ValueError("one slot leaves nothing to copy into while a block runs")
        self.device = torch.device(device)
        self.slots = min(slots, len(blocks))
        self._modules = list(blocks)
        self._copies = copies
        self._places = [_places(block) for block in blocks]
        self.slot_bytes = max((places[-1].end for places in self._places if places), default=0)
        self._host: list[list[Tensor]] = []
        for places in self._places:
            self._host.append(_pack(places, self.device) if packed else [_tensor(place) for place in places])
            for place in places:  # the old tensor goes before the next block is packed
                _give(place, torch.empty(place.shape, dtype=place.dtype, device="meta"))
        self._packed = packed
        self._slots: list[Tensor] = []
        self._holds: list[int | None] = []

    def blocks(self) -> Iterator[Block]:
        """The blocks in order, each with its weights on the device until the next one is asked for."""
        copies = self._allocate()
        count = len(self._modules)
        for index, module in enumerate(self._modules):
            slot = index % self.slots
            self._fetch(index, copies)
            # Ahead, round and round, but never over a block whose turn is still to come.
            waiting = {index}
            for block in ((index + ahead) % count for ahead in range(1, self.slots)):
                if self._holds[block % self.slots] not in waiting:
                    self._fetch(block, copies)
                waiting.add(block)
            copies.wait(slot)
            try:
                yield module
            finally:
                copies.used(slot)

    def release(self) -> None:
        """Give the slots back to the device; the next pass allocates them again."""
        for places in self._places:
            for place in places:
                _give(place, torch.empty(place.shape, dtype=place.dtype, device="meta"))
        self._slots, self._holds = [], []

    def _allocate(self) -> Copies:
        """Slots on the device, and every block's weights as views of one."""
        if not self._slots:
            with torch.inference_mode(False):  # a slot outlives the pass that happens to need it first
                self._slots = [
                    torch.empty(self.slot_bytes, dtype=torch.uint8, device=self.device) for _ in range(self.slots)
                ]
                for index, places in enumerate(self._places):
                    for place in places:
                        _give(place, place.view(self._slots[index % self.slots]))
            self._holds = [None] * self.slots
            if self._copies is None or isinstance(self._copies, StreamCopies):
                self._copies = copies_to(self.device, self.slots)
        assert self._copies is not None
        return self._copies

    def _fetch(self, index: int, copies: Copies) -> None:
        """Begin to bring block `index` into its slot, unless it lies there."""
        slot = index % self.slots
        if self._holds[slot] == index:
            return
        self._holds[slot] = index
        places, host = self._places[index], self._host[index]
        if self._packed:
            pairs = [(host[0], self._slots[slot][: host[0].numel()])]
        else:
            pairs = [(source, place.view(self._slots[slot])) for source, place in zip(host, places, strict=True)]
        copies.start(slot, pairs)


def _places(block: nn.Module) -> list[_Place]:
    """Every tensor of a block, one after the other, each at an aligned offset. Raises TypeError."""
    found: list[_Place] = []
    end = 0
    for name, owner in block.named_modules():
        for table, parameter in ((owner._parameters, True), (owner._buffers, False)):
            for key, tensor in table.items():
                if tensor is None:
                    continue
                if type(tensor) not in (Tensor, nn.Parameter):
                    raise TypeError(f"{name}.{key} is a {type(tensor).__name__}, which cannot be streamed")
                start = -(-end // ALIGNMENT) * ALIGNMENT
                end = start + tensor.numel() * tensor.element_size()
                tables: dict[str, Tensor | None] = table  # pyright: ignore[reportAssignmentType]  parameters are tensors
                found.append(_Place(tables, key, parameter, tensor.dtype, tensor.shape, start, end))
    return found


def _tensor(place: _Place) -> Tensor:
    tensor = place.table[place.key]
    assert tensor is not None
    return tensor.detach()


def _give(place: _Place, tensor: Tensor) -> None:
    place.table[place.key] = nn.Parameter(tensor, requires_grad=False) if place.parameter else tensor


def _pack(places: list[_Place], device: torch.device) -> list[Tensor]:
    """The block's tensors in one run of bytes on the host, pinned where the device is a GPU. Raises MemoryError."""
    size = places[-1].end if places else 0
    try:
        host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    except RuntimeError as error:  # CUDA reports a refused lock of pages as an error of its own
        raise MemoryError(f"the system refuses to pin {size:,} bytes of host memory") from error
    for place in places:
        place.view(host).copy_(_tensor(place))
    return [host]


def stream_blocks(network: LensTransformer2DModel, device: torch.device, *, packed: bool) -> StreamedBlocks[LensBlock]:
    """The blocks of a network on the CPU as a stream to `device`, where the rest of the network goes.

    `packed`: from pinned memory, else from where they are. Raises what `StreamedBlocks` does.
    """
    source = StreamedBlocks(list(network.blocks()), device, slots=SLOTS, packed=packed)
    for name, part in network.named_children():
        if name != "transformer_blocks":
            part.to(device)
    return source


@contextmanager
def making_room(source: StreamedBlocks[LensBlock] | None, guest: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it the stream's slots are free and `guest`, which lives on the CPU, is on `device`. None: nothing to do,
    the guest is there."""
    if source is None:
        yield
        return
    source.release()
    home = guest.state_dict()
    # On a GPU as `loading.fill_vae` lays it there.
    cast(Any, guest).to(device, **({"memory_format": torch.channels_last} if device.type == "cuda" else {}))
    try:
        yield
    finally:
        guest.load_state_dict(home, assign=True)
