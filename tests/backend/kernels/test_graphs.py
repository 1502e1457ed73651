"""CUDA graphs without CUDA: a stand-in replays a function on the buffers it was captured with, as a graph does.

So everything around a graph is tested as it is: keys, buffers, the order of forgetting, and what happens when a
capture fails. That a real graph's replay equals the plain step is tested in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from backend.denoising.denoiser import Denoiser
from backend.kernels.graphs import GraphKey, Graphs, Inputs, cuda_graphs
from tests.backend.folding import fold_network
from tests.backend.model.test_transformer import CONFIG, build, inputs, random_weights

SIGMAS = (1.0, 0.7, 0.3)


class Replay:
    """Writes over its output, from whatever its inputs hold by then."""

    def __init__(self, function: Callable[[], Tensor], output: Tensor) -> None:
        self._function, self._output = function, output

    def replay(self) -> None:
        self._output.copy_(self._function())


class Recorder:
    """Stands in for `CudaCapture`; its answer at capture is worthless, as a real one's is."""

    def __init__(self, fails: str | None = None) -> None:
        self.captures, self.fails = 0, fails

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.captures += 1
        if self.fails is not None:
            raise RuntimeError(self.fails)
        output = torch.full_like(function(), torch.nan)
        return Replay(function, output), output


def key(side: int = 4, text: tuple[int, ...] = (3, 0), plan: str = "flash") -> GraphKey:
    return GraphKey((side, side), text, 5.0, torch.float32, plan)


def double(given: Inputs) -> Tensor:
    return given["x"] * 2


def given(value: float, size: int = 2) -> dict[str, Tensor]:
    return {"x": torch.full((size,), value)}


def test_captured_after_a_few_plain_calls() -> None:
    record = Recorder()
    graphs = Graphs(2, record, patience=3)
    for call in range(6):
        out = graphs.run(key(), given(float(call)), double)
        assert out.tolist() == [2.0 * call] * 2
        assert record.captures == (0 if call < 3 else 1)


def test_what_it_gives_belongs_to_the_caller() -> None:
    """Neither a later replay nor the caller's own buffers change it."""
    graphs = Graphs(2, Recorder(), patience=0)
    mine = given(1.0)
    first = graphs.run(key(), mine, double)
    mine["x"].fill_(7.0)
    second = graphs.run(key(), mine, double)
    assert first.tolist() == [2.0, 2.0] and second.tolist() == [14.0, 14.0]
    mine["x"].fill_(0.0)
    assert second.tolist() == [14.0, 14.0]


def test_the_least_recently_used_goes() -> None:
    record = Recorder()
    graphs = Graphs(2, record, patience=0)
    for side in (1, 2, 1, 3):  # 2 is the oldest when 3 arrives
        graphs.run(key(side), given(1.0, side), double)
    assert [one.grid[0] for one in graphs.keys] == [1, 3] and record.captures == 3
    graphs.run(key(2), given(1.0, 2), double)
    assert [one.grid[0] for one in graphs.keys] == [3, 2] and record.captures == 4


def test_room_is_made_before_a_capture() -> None:
    """A graph's memory must be back in the pool before the next one asks for its own."""
    graphs = Graphs(1, lambda function: (kept.append(len(graphs.keys)), Recorder()(function))[1], patience=0)
    kept: list[int] = []
    for side in (1, 2, 3):
        graphs.run(key(side), given(1.0), double)
    assert kept == [0, 0, 0]


@pytest.mark.parametrize(
    "other", [key(5), key(text=(4, 0)), key(text=(3,)), key(plan="cudnn")], ids=["grid", "length", "branches", "kernel"]
)
def test_keys_tell_apart(other: GraphKey) -> None:
    record = Recorder()
    graphs = Graphs(4, record, patience=0)
    graphs.run(key(), given(1.0), double)
    graphs.run(other, given(1.0), double)
    assert record.captures == 2


def test_a_failed_capture_is_said_once_and_costs_nothing_else() -> None:
    said: list[str] = []
    record = Recorder(fails="operation not permitted when stream is capturing\nmore")
    graphs = Graphs(2, record, patience=1, warn=said.append)
    for call in range(5):
        assert graphs.run(key(), given(float(call)), double).tolist() == [2.0 * call] * 2
    assert record.captures == 1 and len(said) == 1
    assert "without a CUDA graph" in said[0] and "not permitted" in said[0] and "more" not in said[0]


def test_inputs_of_another_shape_are_an_error() -> None:
    graphs = Graphs(2, Recorder(), patience=0)
    graphs.run(key(), given(1.0), double)
    with pytest.raises(ValueError, match=r"x is .* \[3\]; its graph was captured with .* \[2\]"):
        graphs.run(key(), given(1.0, 3), double)
    with pytest.raises(ValueError, match="was given"):
        graphs.run(key(), {"y": torch.zeros(2)}, double)


def test_none_are_made_where_none_may_be() -> None:
    record = Recorder()
    graphs = Graphs(0, record, patience=0)
    for _ in range(3):
        graphs.run(key(), given(1.0), double)
    assert record.captures == 0
    assert cuda_graphs(torch.device("cpu"), 4) is None  # the CPU has no graphs


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@torch.inference_mode()
def test_replayed_steps_are_the_plain_ones(guidance: float) -> None:
    """A denoiser's step reads nothing but its inputs: replayed for other steps, pictures and prompts it is the same."""
    network = build(random_weights(CONFIG))
    folded, record = fold_network(network, SIGMAS), Recorder()
    graphs = Graphs(2, record, patience=0)
    for seed in (1, 2):
        x, text = inputs((3, 2), 4, seed=seed)
        plain = Denoiser(network, folded, (3, 2), text, guidance=guidance)
        replayed = Denoiser(network, folded, (3, 2), text, guidance=guidance, graphs=graphs)
        for step in range(len(SIGMAS)):
            assert torch.equal(replayed.velocity(x, step), plain.velocity(x, step))
    assert record.captures == 1
    x, text = inputs((3, 2), 5)
    Denoiser(network, folded, (3, 2), text, guidance=guidance, graphs=graphs).velocity(x, 0)
    assert record.captures == 2  # a text of another length


@torch.inference_mode()
def test_streamed_blocks_have_no_graph() -> None:
    network = build(random_weights(CONFIG))
    graphs = Graphs(2, Recorder(), patience=0)
    x, text = inputs((3, 2), 4)
    streamed = Denoiser(network, fold_network(network, SIGMAS), (3, 2), text, source=network, graphs=graphs)
    streamed.velocity(x, 0)
    assert graphs.keys == ()
