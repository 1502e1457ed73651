"""Which kernel computes attention: on a GPU the fastest one that is exact, as measured on that GPU and kept on disk.

At head size 64 the kernels differ by more than compiling everything else would gain, and which one wins depends on the
card, the length and the versions of torch, cuDNN and driver. So nothing is guessed: the first picture of a new shape
times every kernel that accepts it, on values with the published ranges (a kernel that goes through float16 overflows
on them and is out), and later processes read the answer.

A CPU has one choice. Two others were tried there and dropped, one core with AMX, bfloat16, 4096 tokens, against
torch's fused kernel (45 ms for 4 heads): tiles of queries with scores in bfloat16 take 2.8 times the seconds at twice
the error, with scores in float32 3.9 times at the same error; splitting heads or queries over several calls 1.0 to
1.3 times.

Shapes: B batch, H heads, S tokens, K head size.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import attention as sdp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from backend.cache.store import Store
from backend.errors import LensError, first_line
from backend.kernels import switches

FORMAT = 1  # of a file; another one is measured again
MILLISECONDS = 20.0  # spent on timing one kernel, after its warm-up
WARM_UPS = 2
LARGE_V = 3e4  # standard deviation of the values tried: their largest reaches the published 1.4e5
CHECKED = 64  # queries compared with float32
WORSE = 2.0  # times the smallest error of all kernels that a kernel may have


class Backend(StrEnum):
    """A kernel of `scaled_dot_product_attention`."""

    torch = "torch"  # torch's own choice: the only one outside CUDA
    fa4 = "fa4"  # FlashAttention 4 and 3, where the package is installed and torch registers it
    fa3 = "fa3"
    cudnn = "cudnn"
    flash = "flash"  # FlashAttention 2, within torch
    efficient = "efficient"
    math = "math"  # keeps every score in memory: tried only where nothing else works


_IMPLEMENTATIONS = {Backend.fa4: "FA4", Backend.fa3: "FA3"}  # of torch's flash backend, by torch's names
_SDP = {
    Backend.fa4: SDPBackend.FLASH_ATTENTION,
    Backend.fa3: SDPBackend.FLASH_ATTENTION,
    Backend.cudnn: SDPBackend.CUDNN_ATTENTION,
    Backend.flash: SDPBackend.FLASH_ATTENTION,
    Backend.efficient: SDPBackend.EFFICIENT_ATTENTION,
    Backend.math: SDPBackend.MATH,
}
FUSED = (Backend.fa4, Backend.fa3, Backend.cudnn, Backend.flash, Backend.efficient)


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What decides which kernel is the fastest."""

    batch: int = 1
    heads: int
    queries: int  # tokens
    keys: int  # tokens
    head_size: int
    dtype: torch.dtype

    @property
    def bucket(self) -> str:
        """The key of the table: lengths rounded up, in steps of at most an eighth, or of 64 tokens."""
        dtype = str(self.dtype).removeprefix("torch.")
        lengths = f"{_rounded(self.queries)}x{_rounded(self.keys)}"
        return f"{dtype} {self.batch}x{self.heads}x{lengths}x{self.head_size}"


def _rounded(tokens: int) -> int:
    step = max(64, 2 ** (tokens.bit_length() - 4))
    return math.ceil(tokens / step) * step


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of trying one kernel on one shape."""

    backend: Backend
    seconds: float | None = None  # of one call; None: it was refused
    error: float | None = None  # root mean square against float32, relative to the answer's
    refused: str | None = None  # why


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """`scaled_dot_product_attention` within runs this kernel, or raises RuntimeError where it cannot.

    Cheap enough for every step (about 20 us), too dear for every block.
    """
    if backend is Backend.torch:
        yield
        return
    _activate(_IMPLEMENTATIONS.get(backend))
    with sdp.sdpa_kernel(_SDP[backend]):
        yield


def _activate(implementation: str | None) -> None:
    """Put an implementation behind torch's flash backend; None: the built-in one. Left there until another is wanted.

    Raises ImportError, RuntimeError or ValueError where it is not to be had.
    """
    current = sdp.current_flash_attention_impl()
    if current == implementation:
        return
    if implementation is None:
        sdp.restore_flash_attention_impl()
    else:
        sdp.activate_flash_attention_impl(implementation)


class Choices:
    """The measured table of one device. Elsewhere than on CUDA the choice is always torch's."""

    def __init__(
        self,
        device: torch.device,
        store: Store | None = None,
        *,
        measure: Callable[[torch.device, AttentionShape, Backend], Trial] | None = None,
        machine: dict[str, str] | None = None,
    ) -> None:
        """`store`: where tables are kept; None: this process only. `measure`, `machine`: None: CUDA's."""
        self.device, self._store = device, store
        self._measure = measure or (_time if device.type == "cuda" else None)
        if machine is None:
            machine = describe_machine(device) if device.type == "cuda" else {"device": device.type}
        self.machine = machine
        self._key = hashlib.sha256(json.dumps([FORMAT, machine], sort_keys=True).encode()).hexdigest()[:24]
        self._shapes: dict[str, tuple[Trial, ...]] = self._read()

    def choose(self, shape: AttentionShape) -> Backend:
        """The kernel that the switch names, else the fastest one for this shape, measured now where it is new.

        Not to be called while a graph is captured.

        Raises LensError where no kernel works at all, or the named one does not; torch.OutOfMemoryError where there is
        no room to try.
        """
        if self._measure is None:
            return Backend.torch
        named = switches.ATTENTION.value
        if named != switches.AUTO:
            return self._checked(Backend(named), shape)
        return best(self.trials(shape)).backend

    def _checked(self, backend: Backend, shape: AttentionShape) -> Backend:
        """A kernel that was asked for. Raises LensError where it refuses the shape."""
        assert self._measure is not None
        trial = None if backend is Backend.torch else self._measure(self.device, shape, backend)
        if trial is not None and trial.refused is not None:
            raise LensError(
                f"{switches.ATTENTION.name} = {backend}: that kernel does not work here ({trial.refused})",
                hint=f"another one, or {switches.ATTENTION.plain}",
            )
        return backend

    def trials(self, shape: AttentionShape) -> tuple[Trial, ...]:
        """What every kernel did with this shape."""
        assert self._measure is not None, "there is nothing to measure on this device"
        if shape.bucket not in self._shapes:
            trials = [self._measure(self.device, shape, backend) for backend in FUSED]
            if not usable(trials):
                trials.append(self._measure(self.device, shape, Backend.math))
            self._shapes[shape.bucket] = tuple(trials)
            self._write()
        return self._shapes[shape.bucket]

    @property
    def shapes(self) -> dict[str, tuple[Trial, ...]]:
        """Everything that has been measured, by bucket."""
        return dict(self._shapes)

    def _read(self) -> dict[str, tuple[Trial, ...]]:
        data = self._store.read(self._key) if self._store is not None else None
        if data is None:
            return {}
        try:
            held = cast("dict[str, list[dict[str, Any]]]", json.loads(data)["shapes"])
            return {
                bucket: tuple(Trial(**{**trial, "backend": Backend(trial["backend"])}) for trial in trials)
                for bucket, trials in held.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            assert self._store is not None
            self._store.drop(self._key, f"{type(error).__name__}: {error}")
            return {}

    def _write(self) -> None:
        if self._store is None:
            return
        shapes = {bucket: [asdict(trial) for trial in trials] for bucket, trials in self._shapes.items()}
        self._store.write(self._key, json.dumps({"machine": self.machine, "shapes": shapes}, indent=1).encode())


def usable(trials: Sequence[Trial]) -> list[Trial]:
    """Those that ran and are as exact as the others: a kernel of lower precision is not faster, it is another one."""
    ran = [trial for trial in trials if trial.seconds is not None and trial.error is not None]
    least = min((trial.error for trial in ran if trial.error is not None), default=0.0)
    return [trial for trial in ran if trial.error is not None and trial.error <= WORSE * least]


def best(trials: Sequence[Trial]) -> Trial:
    """The fastest usable one. Raises LensError where there is none."""
    candidates = usable(trials)
    if not candidates:
        why = "; ".join(f"{trial.backend}: {trial.refused or 'not finite'}" for trial in trials)
        raise LensError(f"no attention kernel works on this device ({why})", hint="Try --device cpu.")
    return min(candidates, key=lambda trial: cast("float", trial.seconds))


def describe_machine(device: torch.device) -> dict[str, str]:
    """What a measurement holds for: card, driver, and the versions of what ships kernels."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    driver = Path("/proc/driver/nvidia/version")
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "driver": driver.read_text(encoding="utf-8").splitlines()[0] if driver.exists() else sys.platform,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "flash_attn_3": installed("flash_attn_3"),
        "flash_attn": installed("flash_attn"),
    }


# ------------------------------------------------------------------------------------------------------ measuring


def _time(device: torch.device, shape: AttentionShape, backend: Backend) -> Trial:
    """Try one kernel on a CUDA device. Memory: four tensors of the shape."""
    with torch.inference_mode(), torch.cuda.device(device):
        return try_kernel(backend, *trial_tensors(shape, device), _seconds)


def try_kernel(
    backend: Backend, q: Tensor, k: Tensor, v: Tensor, seconds_of: Callable[[Callable[[], object]], float]
) -> Trial:
    """What one kernel does with these tensors. Raises torch.OutOfMemoryError: that is no word about the kernel."""
    try:
        with using(backend):
            out = F.scaled_dot_product_attention(q, k, v)
            error = relative_error(out, q, k, v)
            if not math.isfinite(error):
                return Trial(backend=backend, refused="not finite on values of 1.4e5")
            seconds = seconds_of(lambda: F.scaled_dot_product_attention(q, k, v))
    except torch.OutOfMemoryError:
        raise
    except Exception as why:  # noqa: BLE001  torch's refusals, and whatever the packages behind it raise
        return Trial(backend=backend, refused=first_line(why))
    return Trial(backend=backend, seconds=seconds, error=error)


def trial_tensors(shape: AttentionShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as the network makes them: (B, H, S, K) over memory laid out (B, S, H, K)."""
    generator = torch.Generator(device).manual_seed(0)

    def tensor(tokens: int, deviation: float) -> Tensor:
        sizes = (shape.batch, tokens, shape.heads, shape.head_size)
        x = torch.randn(sizes, generator=generator, device=device) * deviation
        return x.to(shape.dtype).transpose(1, 2)

    # Queries and keys are normalised; only the values are large.
    return tensor(shape.queries, 1.0), tensor(shape.keys, 1.0), tensor(shape.keys, LARGE_V)


def relative_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """How far the first queries' answer is from float32 on the same values: root mean squares, relative. nan or inf:
    not finite."""
    exact = exact_attention(q[:, :, :CHECKED], k, v)
    difference = out[:, :, :CHECKED].float() - exact
    return float(difference.square().mean().sqrt() / exact.square().mean().sqrt())


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v in float32, every score in memory."""
    scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, dim=-1) @ v.float()


def _seconds(call: Callable[[], object]) -> float:
    """What one call takes on the device: the better of two runs of about MILLISECONDS each."""

    def run(count: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / count  # milliseconds

    once = run(WARM_UPS)
    count = max(3, min(100, round(MILLISECONDS / max(once, 1e-3))))
    return min(run(count) for _ in range(2)) / 1e3
