"""--compile on a CPU: the same velocities as without, compiled once for all blocks and sizes, kept on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from backend import paths
from backend.denoising import compile as compiling
from backend.denoising.denoiser import Denoiser
from backend.errors import LensError, UsageError
from tests.backend.folding import fold_network
from tests.backend.model.test_transformer import CONFIG, build, inputs, random_weights

SIGMAS = (1.0, 0.5)
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in compiling.COMPILERS), reason="no C++ compiler on PATH"
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what another test compiled nor where it kept it."""
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@needs_compiler
@torch.inference_mode()
def test_compiled_blocks(fresh: None) -> None:
    config = {**CONFIG, "num_layers": 4}
    network = build(random_weights(config), config)
    folded = fold_network(network, SIGMAS)
    cases = [(grid, inputs(grid, length)) for grid, length in (((3, 4), 5), ((2, 3), 7))]
    plain = [Denoiser(network, folded, grid, text).velocity(x, step) for grid, (x, text) in cases for step in (0, 1)]
    compiling.compile_blocks(network)
    compiled = [Denoiser(network, folded, grid, text).velocity(x, step) for grid, (x, text) in cases for step in (0, 1)]
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # Three blocks, two steps and two sizes are one graph; the last block stays plain.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert any(path.suffix == ".so" for path in paths.inductor_dir().rglob("*"))


def test_more_variants_than_torch_allows(fresh: None) -> None:
    """Twelve sizes, each compiled for itself: torch's own limit refuses some, ours none."""

    def doubled(limit_raised: bool) -> list[float]:
        if limit_raised:
            compiling.allow_variants()
        double = torch.compile(lambda x: x * 2, dynamic=False, fullgraph=True, backend="eager")
        return [float(double(torch.ones(size)).sum()) for size in range(2, 14)]

    # Not by monkeypatch: undoing it deletes the field, which torch then hides from all tests that follow.
    with torch._dynamo.config.patch(recompile_limit=8):
        with pytest.raises(FailOnRecompileLimitHit):
            doubled(limit_raised=False)
        torch._dynamo.reset()
        assert doubled(limit_raised=True) == [2.0 * size for size in range(2, 14)]


def test_no_compiler_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="needs a C\\+\\+ compiler") as caught:
        compiling.check_compiler(torch.device("cpu"))
    assert caught.value.hint and "--compile" in caught.value.hint
    compiling.check_compiler(torch.device("cuda"))  # triton brings its own
    with pytest.raises(UsageError, match="mps"):
        compiling.check_compiler(torch.device("mps"))


def test_a_folder_that_the_person_named_is_kept(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiling._keep_on_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiling._keep_on_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(paths.inductor_dir())


def test_the_compilers_failures_are_ours() -> None:
    from torch._inductor.exc import InductorError

    with pytest.raises(LensError, match=r"torch\.compile failed: .*no such header"), compiling.failing_as_ours():
        raise InductorError(RuntimeError("no such header"), None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="another") as caught, compiling.failing_as_ours():
        raise RuntimeError("another")
    assert not isinstance(caught.value, LensError)
