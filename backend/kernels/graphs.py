"""CUDA graphs of whole steps: one launch instead of about a thousand, with the same kernels and the same numbers.

A graph replays fixed addresses, so its inputs live in buffers of its own and are copied there before every replay
(0.6 MB of text and 1.8 MB of modulation a step at the published size), and its output is copied out. Graphs share one
pool of memory: they never run at the same time. They are kept per shape, least recently used first out, and belong to
one set of weights; whoever loads others starts with an empty cache. Not for streamed blocks, whose copies another
stream orders.

A text of another length is another graph: padding would need a mask, and a mask costs attention its fast kernels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from backend.errors import first_line
from backend.kernels import switches

PATIENCE = 4  # plain calls of a key before it is captured: a distilled model's single picture never pays for a capture
WARM_UPS = 2  # calls on the capturing stream, where libraries make their workspaces

Inputs = Mapping[str, Tensor]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class GraphKey:
    """Everything that decides a graph besides its inputs' contents."""

    grid: tuple[int, int]  # latent height and width
    text: tuple[int, ...]  # text tokens of each branch of guidance, in order; 0: none
    guidance: float
    dtype: torch.dtype
    plan: str  # which kernels run: what else changes what a step launches


class Captured(Protocol):
    """What a `torch.cuda.CUDAGraph` is."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Captured, Tensor]]


@dataclass
class _Kept:
    inputs: dict[str, Tensor]
    graph: Captured
    output: Tensor


class Graphs:
    """The graphs of one network on one device."""

    def __init__(self, limit: int, capture: Capture, *, patience: int = PATIENCE, warn: Warn = lambda _: None) -> None:
        """`limit`: graphs kept; 0: none are made. `capture`: runs a function once while recording it."""
        self.limit, self.patience, self._capture, self._warn = limit, patience, capture, warn
        self._kept: OrderedDict[GraphKey, _Kept] = OrderedDict()
        self._calls: dict[GraphKey, int] = {}
        self._refused: set[GraphKey] = set()

    def run(self, key: GraphKey, inputs: Inputs, function: Callable[[Inputs], Tensor]) -> Tensor:
        """`function(inputs)`, from a graph where there is one. The answer is the caller's own.

        `function` may read nothing that changes but its inputs, and must not wait for the device. Call it within
        `torch.inference_mode`. Raises ValueError where a key comes with inputs of another shape than before.
        """
        kept = self._kept.get(key)
        if kept is None:
            if not self._ripe(key):
                return function(inputs)
            kept = self._make(key, inputs, function)
            if kept is None:
                return function(inputs)
        self._kept.move_to_end(key)
        _fill(kept.inputs, inputs)
        kept.graph.replay()
        return kept.output.clone()

    @property
    def keys(self) -> tuple[GraphKey, ...]:
        """What each kept graph belongs to, least recently used first."""
        return tuple(self._kept)

    def _ripe(self, key: GraphKey) -> bool:
        if not self.limit or key in self._refused:
            return False
        self._calls[key] = self._calls.get(key, 0) + 1
        return self._calls[key] > self.patience

    def _make(self, key: GraphKey, inputs: Inputs, function: Callable[[Inputs], Tensor]) -> _Kept | None:
        """Capture; None where that failed, which is said, and not tried again."""
        while len(self._kept) >= self.limit:
            self._kept.popitem(last=False)  # before the capture: its memory goes back to the pool
        static = {name: tensor.clone() for name, tensor in inputs.items()}
        try:
            graph, output = self._capture(lambda: function(static))
        except RuntimeError as error:  # an operation that cannot be recorded, or no memory for it
            self._refused.add(key)
            why = first_line(error)
            self._warn(f"steps run without a CUDA graph, which is slower and just as exact: {why}")
            return None
        self._kept[key] = kept = _Kept(static, graph, output)
        return kept


def _fill(static: dict[str, Tensor], inputs: Inputs) -> None:
    if static.keys() != inputs.keys():
        raise ValueError(f"a graph of {sorted(static)} was given {sorted(inputs)}")
    for name, buffer in static.items():
        given = inputs[name]
        if given.shape != buffer.shape or given.dtype != buffer.dtype:
            raise ValueError(
                f"{name} is {given.dtype} {list(given.shape)}; its graph was captured with "
                f"{buffer.dtype} {list(buffer.shape)}"
            )
        buffer.copy_(given)


class CudaCapture:
    """Records on a stream of its own, into one pool for all graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Captured, Tensor]:
        """Raises RuntimeError where something cannot be recorded."""
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    function()
            here.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads (a server's, a copy's) may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = function()
        return graph, output


def cuda_graphs(device: torch.device, limit: int, warn: Warn = lambda _: None) -> Graphs | None:
    """A cache for this device; None where it has no graphs, none are to be kept, or the switch forbids them."""
    if device.type != "cuda" or limit < 1 or switches.GRAPHS.is_plain:
        return None
    return Graphs(limit, CudaCapture(device), warn=warn)
