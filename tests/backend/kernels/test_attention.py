"""The measured choice of an attention kernel, with scripted measurements in place of a GPU's.

The real measurements, and every kernel against float32, are in tests/gpu.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from backend.cache.store import Store
from backend.errors import LensError
from backend.kernels import attention
from backend.kernels.attention import AttentionShape, Backend, Choices, Trial, using

CPU = torch.device("cpu")
SMALL = AttentionShape(heads=2, queries=70, keys=90, head_size=64, dtype=torch.float32)
MACHINE = {"gpu": "NVIDIA Paper 1", "torch": "2.13.0", "driver": "1"}


def shape(tokens: int = 4296, dtype: torch.dtype = torch.bfloat16, heads: int = 24) -> AttentionShape:
    return AttentionShape(heads=heads, queries=tokens, keys=tokens, head_size=64, dtype=dtype)


class Script:
    """A GPU on which every kernel does what it is told; counts what is asked of it."""

    def __init__(self, seconds: dict[Backend, float], error: dict[Backend, float] | None = None) -> None:
        self.seconds, self.error = seconds, error or {}
        self.asked: list[tuple[str, Backend]] = []

    def __call__(self, device: torch.device, what: AttentionShape, backend: Backend) -> Trial:
        self.asked.append((what.bucket, backend))
        if backend not in self.seconds:
            return Trial(backend=backend, refused="not on this card")
        return Trial(backend=backend, seconds=self.seconds[backend], error=self.error.get(backend, 2.3e-3))


def store(folder: Path, said: list[str] | None = None) -> Store:
    return Store(folder, ".json", 1_000_000, (said if said is not None else []).append)


def choices(script: Script, kept: Store | None = None, machine: dict[str, str] | None = None) -> Choices:
    return Choices(CPU, kept, measure=script, machine=machine or MACHINE)


def test_the_fastest_wins() -> None:
    script = Script({Backend.cudnn: 1.2e-3, Backend.flash: 1.5e-3, Backend.efficient: 3e-3})
    assert choices(script).choose(shape()) is Backend.cudnn
    assert [backend for _, backend in script.asked] == list(attention.FUSED)  # math is not even tried


def test_less_exact_is_not_faster() -> None:
    """A kernel three times as far from float32 as the others computes in a lower precision."""
    script = Script(
        {Backend.fa3: 1e-3, Backend.flash: 1.5e-3, Backend.efficient: 3e-3}, {Backend.fa3: 7e-3, Backend.flash: 2.4e-3}
    )
    assert choices(script).choose(shape()) is Backend.flash


def test_math_is_the_last_resort() -> None:
    script = Script({Backend.math: 50e-3})
    assert choices(script).choose(shape()) is Backend.math
    with pytest.raises(LensError, match="no attention kernel works") as caught:
        choices(Script({})).choose(shape())
    assert "flash: not on this card" in str(caught.value)


def test_measured_once_and_for_good(tmp_path: Path) -> None:
    first, kept = Script({Backend.cudnn: 1e-3, Backend.flash: 2e-3}), store(tmp_path)
    table = choices(first, kept)
    assert table.choose(shape()) is table.choose(shape()) is Backend.cudnn
    assert len(first.asked) == len(attention.FUSED)
    second = Script({Backend.flash: 1e-3})
    again = choices(second, store(tmp_path))
    assert again.choose(shape()) is Backend.cudnn and not second.asked  # another process reads it
    assert again.shapes == table.shapes
    assert again.choose(shape(1024)) is Backend.flash  # a length of its own
    assert set(choices(second, store(tmp_path)).shapes) == {shape().bucket, shape(1024).bucket}


def test_another_machine_measures_again(tmp_path: Path) -> None:
    choices(Script({Backend.cudnn: 1e-3}), store(tmp_path)).choose(shape())
    for changed in ("gpu", "torch", "driver"):
        script = Script({Backend.flash: 1e-3})
        assert choices(script, store(tmp_path), {**MACHINE, changed: "other"}).choose(shape()) is Backend.flash
    assert len(list(tmp_path.glob("*.json"))) == 4


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", '{"shapes": {"a": [{"backend": "abacus"}]}}', '{"shapes": {"a": [{"colour": 1}]}}']
)
def test_a_damaged_table_is_said_and_made_again(tmp_path: Path, text: str) -> None:
    choices(Script({Backend.cudnn: 1e-3}), store(tmp_path)).choose(shape())
    (file,) = tmp_path.glob("*.json")
    file.write_text(text)
    said: list[str] = []
    script = Script({Backend.flash: 1e-3})
    assert choices(script, store(tmp_path, said)).choose(shape()) is Backend.flash
    assert len(said) == 1 and "damaged" in said[0]
    assert shape().bucket in json.loads(file.read_text())["shapes"]


def test_buckets() -> None:
    """Lengths share a measurement only within an eighth, or 64 tokens, of each other; all else is told apart."""
    for tokens in (1, 63, 200, 1024, 1025, 4096, 4296, 8100, 8300):
        up = attention._rounded(tokens)
        assert tokens <= up <= max(tokens + 63, tokens * 1.125 + 1)
    assert shape(4100).bucket == shape(4296).bucket != shape(4096).bucket
    others = [shape(), shape(dtype=torch.float32), shape(heads=4), shape(8300)]
    assert len({one.bucket for one in others}) == 4


def test_a_cpu_has_torchs_kernel_and_measures_nothing() -> None:
    assert Choices(CPU).choose(shape()) is Backend.torch
    q, k, v = attention.trial_tensors(
        AttentionShape(heads=2, queries=70, keys=90, head_size=64, dtype=torch.float32), CPU
    )
    with using(Backend.torch):
        out = F.scaled_dot_product_attention(q, k, v)
    assert attention.relative_error(out, q, k, v) < 1e-6


def test_the_error_is_one() -> None:
    """What decides: a scale wrong by a hundredth is an error of a hundredth, and overflow is not finite."""
    q, k, v = attention.trial_tensors(
        AttentionShape(heads=2, queries=70, keys=90, head_size=64, dtype=torch.float32), CPU
    )
    exact = attention.exact_attention(q, k, v)
    assert attention.relative_error(exact * 1.01, q, k, v) == pytest.approx(0.01, rel=1e-3)
    assert float(v.abs().max()) > 65504  # through float16, which the published values overflow as well
    assert not attention.relative_error(exact.half().float() * 100, q, k, v) < 1
    overflown = F.scaled_dot_product_attention(q.half().float(), k.half().float(), v.half().float())
    assert not torch.isfinite(torch.tensor(attention.relative_error(overflown, q, k, v)))


def test_using_switches_kernels_and_back() -> None:
    """On a CPU torch has two: its fused one and plain mathematics, which are not the same to the last bit."""
    q, k, v = attention.trial_tensors(
        AttentionShape(heads=2, queries=512, keys=512, head_size=64, dtype=torch.float32), CPU
    )
    before = torch.nn.attention._cur_sdpa_kernel_backends()
    with using(Backend.math):
        by_math = F.scaled_dot_product_attention(q, k, v)
    assert torch.nn.attention._cur_sdpa_kernel_backends() == before
    torch.testing.assert_close(by_math, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1.0)
    assert not torch.equal(by_math, F.scaled_dot_product_attention(q, k, v))
    with pytest.raises(RuntimeError), using(Backend.efficient):
        F.scaled_dot_product_attention(q, k, v)
    assert torch.nn.attention._cur_sdpa_kernel_backends() == before


def test_no_room_to_try_is_no_word_about_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is kept for good; memory that ran out is raised, for the plan to step down."""
    q, k, v = attention.trial_tensors(
        AttentionShape(heads=2, queries=70, keys=90, head_size=64, dtype=torch.float32), CPU
    )
    trial = attention.try_kernel(Backend.math, q, k, v, lambda call: (call(), 1.5)[1])
    assert trial.seconds == 1.5 and trial.error is not None and trial.error < 1e-6 and trial.refused is None
    assert attention.try_kernel(Backend.efficient, q, k, v, lambda _: 1.0).refused is not None  # not on a CPU

    def full(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        attention.try_kernel(Backend.math, q, k, v, full)

    def wrong(*_: object) -> float:
        raise AssertionError("only on cards of tomorrow")  # as FlashAttention's own Python says it

    assert attention.try_kernel(Backend.math, q, k, v, wrong).refused == "only on cards of tomorrow"


def test_an_implementation_that_is_not_installed_is_an_error() -> None:
    with pytest.raises((ImportError, RuntimeError)), using(Backend.fa3):
        pass
    assert torch.nn.attention.current_flash_attention_impl() is None
