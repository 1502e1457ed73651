"""The pointwise operations of inference against the paper's equations in float64.

Why it can be trusted: the statements in `pointwise_statements` share no line with the product. The yardstick is the
error of the plain statements that training runs (`backend.model.transformer`), on unit normals and on values with
the published ranges: residuals of 3e7, values of 1.4e5. Triton's kernels are run by its interpreter, which rounds to
bfloat16 in its own wrong way (it cuts, 3.7.1), so there they write float32 and torch does the last rounding.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor

from backend.kernels import pointwise as chosen
from backend.kernels import pointwise_torch as plain
from backend.kernels.pointwise_torch import Stream
from backend.model import transformer
from backend.model.positions import apply_rope, rope_table
from backend.model.transformer import Modulation, RMSNorm, modulate
from backend.params import DiTParams
from tests.backend import pointwise_statements as exact

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
# Largest value of the residual stream and of the attention's values: unit normals, and as published.
RANGES = [(4.0, 4.0), (3e7, 1.4e5)]
WIDTH, HIDDEN, TOKENS, HEADS = 96, 160, 3, 3
SLACK = {torch.float32: 1.5, torch.bfloat16: 1.05}  # in float32 all are the last bit's: another order, other luck

every = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
ranges = pytest.mark.parametrize(("residual", "value"), RANGES, ids=["unit", "published"])


class Operations(Protocol):
    """What plain torch and Triton have in common, all answering in the dtype of their inputs."""

    def norm_modulate(self, x: Tensor, weight: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor: ...

    def add_gated(self, x: Tensor, gate: Tensor, update: Tensor) -> Tensor: ...

    def silu_mul(self, a: Tensor, b: Tensor) -> Tensor: ...

    def joint_qkv(
        self, streams: list[Stream], rope: Tensor, heads: int, eps: float, *, query_streams: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Interpreted:
    """Triton's kernels with float32 answers, rounded by torch."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = getattr(self._module, name)

        def run(*args: Any, **more: Any) -> Any:
            first = args[0][0].qkv_BS3D if isinstance(args[0], list) else args[0]
            out = kernel(*args, **more, out=torch.float32)
            return tuple(t.to(first.dtype) for t in out) if isinstance(out, tuple) else out.to(first.dtype)

        return run


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["triton" if INTERPRETED else "torch"])
def operations() -> Operations:
    """Triton's where this process was started with its interpreter (`test_triton_in_its_interpreter`)."""
    if not INTERPRETED:
        return plain  # pyright: ignore[reportReturnType]
    from backend.kernels import pointwise_triton

    return Interpreted(pointwise_triton)  # pyright: ignore[reportReturnType]


@pytest.mark.skipif(INTERPRETED, reason="is inside")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed here: pip install -e '.[triton]'")
def test_triton_in_its_interpreter() -> None:
    """The tests below once more, by Triton's kernels. A process of its own: triton decides when it is first imported,
    which other libraries do, whether its kernels are interpreted."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) >= 20, run.stdout[-3000:]


def normal(*shape: int, seed: int, dtype: torch.dtype, largest: float | None = None) -> Tensor:
    """Unit normals; with `largest`, spread over four powers of ten up to it, as a few channels of the model are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    if largest is not None and largest > 100:
        x = x * 10 ** torch.linspace(-4, 0, shape[-1])[torch.randperm(shape[-1], generator=generator)]
        x = x / x.abs().max() * largest
    return x.to(dtype)


def error(got: Tensor, wanted: Tensor) -> float:
    """Root mean square, relative."""
    assert got.shape == wanted.shape
    return float((got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def hold(got: Tensor, statement: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """No further from exact than the plain statement, which itself is as close as its dtype allows."""
    assert got.dtype == dtype and bool(torch.isfinite(got).all())
    allowed = error(statement, wanted)
    assert 0 < allowed < (1e-6 if dtype is torch.float32 else 1e-2)
    assert error(got, wanted) <= SLACK[dtype] * allowed


def modulations(dtype: torch.dtype) -> Modulation:
    """Of two pictures: views of one tensor, as the folded table's are."""
    rows = normal(2, 6 * WIDTH, seed=9, dtype=dtype)[:, None]
    return Modulation(*rows.chunk(6, dim=-1)[:3])


@every
@ranges
@torch.inference_mode()
def test_norm_modulate(operations: Operations, dtype: torch.dtype, residual: float, value: float) -> None:
    x = normal(2, TOKENS, WIDTH, seed=1, dtype=dtype, largest=residual)
    norm = RMSNorm(WIDTH, EPS).to(dtype)
    norm.weight.copy_(normal(WIDTH, seed=2, dtype=dtype))
    m = modulations(dtype)
    got = operations.norm_modulate(x, norm.weight, EPS, m.shift, m.scale)
    hold(got, modulate(norm(x), m), exact.norm_modulate(x, norm.weight, EPS, m.shift, m.scale), dtype)


@every
@torch.inference_mode()
def test_norm_of_almost_nothing(operations: Operations, dtype: torch.dtype) -> None:
    """Where the mean square is near epsilon, epsilon counts; a row of zeros stays zero."""
    x = normal(1, TOKENS, WIDTH, seed=1, dtype=dtype) * 1e-3
    x[:, 0] = 0
    weight, m = torch.ones(WIDTH, dtype=dtype), modulations(dtype)
    got = operations.norm_modulate(x, weight, EPS, m.shift[:1], m.scale[:1])
    wanted = exact.norm_modulate(x, weight, EPS, m.shift[:1], m.scale[:1])
    assert error(got, wanted) < (1e-6 if dtype is torch.float32 else 4e-3)
    without = exact.norm_modulate(x[:, 1:], weight, 0.0, m.shift[:1], m.scale[:1])
    assert error(got[:, 1:], without) > 0.05
    assert torch.equal(got[:, 0], m.shift[:1, 0])


@every
@ranges
@torch.inference_mode()
def test_add_gated(operations: Operations, dtype: torch.dtype, residual: float, value: float) -> None:
    x = normal(2, TOKENS, WIDTH, seed=1, dtype=dtype, largest=residual)
    update = normal(2, TOKENS, WIDTH, seed=2, dtype=dtype, largest=value)
    gate = modulations(dtype).gate
    hold(operations.add_gated(x, gate, update), x + gate * update, exact.add_gated(x, gate, update), dtype)


@every
@ranges
@torch.inference_mode()
def test_silu_mul(operations: Operations, dtype: torch.dtype, residual: float, value: float) -> None:
    a = normal(2, TOKENS, HIDDEN, seed=1, dtype=dtype, largest=value)
    b = normal(2, TOKENS, HIDDEN, seed=2, dtype=dtype, largest=value)
    a[..., 0] = -1e4  # its exponential overflows: the answer is zero, not nan
    statement, wanted = torch.nn.functional.silu(a) * b, exact.silu_mul(a, b)
    got = operations.silu_mul(a, b)
    hold(got, statement, wanted, dtype)
    assert bool((got[..., 0] == 0).all())


def streams(dtype: torch.dtype, value: float, lengths: tuple[int, ...], batch: int = 1) -> list[Stream]:
    """Projections whose queries and keys are of unit size and whose values are large."""
    found = []
    for index, length in enumerate(lengths):
        qkv = normal(batch, length, 3, HEADS * 64, seed=20 + index, dtype=dtype)
        qkv[:, :, 2] = normal(batch, length, HEADS * 64, seed=30 + index, dtype=dtype, largest=value)
        weights = (1 + 0.3 * normal(2, 64, seed=40 + index, dtype=torch.float32)).to(dtype)
        found.append(Stream(qkv.flatten(2), weights[0], weights[1]))
    return found


def plain_qkv(given: list[Stream], rope: Tensor, query_streams: int) -> list[Tensor]:
    """What `JointAttention.forward` does, which training runs."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for qkv, q_weight, k_weight in given:
        heads = qkv.view(*qkv.shape[:2], 3, HEADS, 64).unbind(2)
        for part, weight, into in zip(heads, (q_weight, k_weight, None), parts, strict=True):
            if weight is None:
                into.append(part)
                continue
            norm = RMSNorm(64, EPS)
            norm.weight = torch.nn.Parameter(weight, requires_grad=False)
            into.append(norm(part))
    q, k, v = (torch.cat(part, 1) for part in parts)
    length = sum(stream.qkv_BS3D.shape[1] for stream in given[:query_streams])
    return [x.transpose(1, 2) for x in (apply_rope(q, rope)[:, :length], apply_rope(k, rope), v)]


@every
@ranges
@pytest.mark.parametrize(
    ("lengths", "query_streams"), [((4, 2), 2), ((4, 2), 1), ((4,), 1)], ids=["joint", "text unread", "no text"]
)
@torch.inference_mode()
def test_joint_qkv(
    operations: Operations, dtype: torch.dtype, residual: float, value: float, lengths: tuple[int, ...],
    query_streams: int,
) -> None:  # fmt: skip
    rope = rope_table(DiTParams(), 2, 2, sum(lengths[1:]), torch.device("cpu"))
    given = streams(dtype, value, lengths)
    got = operations.joint_qkv(given, rope, HEADS, EPS, query_streams=query_streams)
    statement = plain_qkv(given, rope, query_streams)
    wanted = exact.joint_qkv(given, rope, HEADS, EPS, query_streams=query_streams)
    for ours, theirs, truth in zip(got[:2], statement[:2], wanted[:2], strict=True):
        hold(ours, theirs, truth, dtype)
    assert torch.equal(got[2], statement[2])  # values are moved, to the last bit


@torch.inference_mode()
def test_batches_and_odd_heads(operations: Operations) -> None:
    """Two pictures, and a head size that is no power of two."""
    config = DiTParams(attention_head_dim=12, axes_dims_rope=(2, 4, 6))
    rope = rope_table(config, 2, 2, 3, torch.device("cpu"))
    weights = normal(2, 12, seed=5, dtype=torch.float32)
    given = [Stream(normal(2, n, 3 * 2 * 12, seed=n, dtype=torch.float32), *weights) for n in (4, 3)]
    got = operations.joint_qkv(given, rope, 2, EPS, query_streams=2)
    for ours, truth in zip(got, exact.joint_qkv(given, rope, 2, EPS, query_streams=2), strict=True):
        assert error(ours, truth) < 1e-6


@every
@ranges
@torch.inference_mode()
def test_fp8_rows(dtype: torch.dtype, residual: float, value: float) -> None:
    """Each code is the nearest of E4M3 (3 bits of mantissa, 2^-9 the smallest) to its share of the row's largest."""
    x = normal(5, HIDDEN, seed=6, dtype=dtype, largest=residual)
    x[2] = 0
    codes, scales = plain.quantise_fp8_rows(x)
    if INTERPRETED:
        from backend.kernels import pointwise_triton

        scaled, ours = pointwise_triton.quantise_fp8_rows(x, out=torch.float32)
        assert torch.equal(scaled.to(plain.FP8).float(), codes.float()) and torch.equal(ours, scales)
    share = x.double() / (x.double().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-300)
    allowed = torch.maximum(share.abs() * 2**-4, torch.full_like(share, 2**-10)) * (1 + 1e-6)
    assert bool(((codes.double() - share).abs() <= allowed).all())
    assert codes.float().abs().amax(-1).tolist() == [448, 448, 0, 448, 448]
    largest = x.double().abs().amax(-1, keepdim=True)
    torch.testing.assert_close(448 * scales.double(), largest, rtol=1e-6, atol=1e-30)
    assert scales.shape == (5, 1) and bool((scales > 0).all())


def test_what_compilers_see_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotation has a form in real numbers for compilers."""
    rope = rope_table(DiTParams(), 3, 2, 2, torch.device("cpu"))
    x = normal(2, 3, 8, 64, seed=3, dtype=torch.float32)
    by_complex = plain.turned(x, rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(plain.turned(x, rope), by_complex, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(INTERPRETED, reason="triton is told to work here")
def test_where_triton_does_not_work_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container without a C compiler has triton, which then fails at its first kernel."""

    def without_a_compiler(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler\nmore")

    broken = ModuleType("pointwise_triton")
    monkeypatch.setitem(sys.modules, "backend.kernels.pointwise_triton", broken)
    monkeypatch.setattr(chosen, "find_spec", lambda name: object())
    monkeypatch.setenv("TRITON_CACHE_DIR", "anywhere")
    for silu_mul, said in ((without_a_compiler, 1), (plain.silu_mul, 0)):
        caplog.clear()
        monkeypatch.setattr(broken, "silu_mul", silu_mul, raising=False)
        chosen._works.cache_clear()
        for _ in range(2):
            assert chosen._works(torch.device("cpu")) == (not said)
        assert len(caplog.messages) == said and all("find C compiler)" in text for text in caplog.messages)
    chosen._works.cache_clear()


def test_a_cpu_takes_torch() -> None:
    with torch.inference_mode():
        assert not chosen.uses_triton(torch.zeros(1))
    assert transformer.joint_qkv is chosen.joint_qkv  # the network asks the dispatcher
