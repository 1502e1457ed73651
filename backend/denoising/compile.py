"""torch.compile, opt-in: the blocks alone, once for all of them and for every size, kept on disk between processes.

The blocks share one code object and take their weights as inputs, so the compiler works once per kind of block, not
once per block; sizes are symbols, so another picture size compiles nothing. The last block is left as it is: it skips
the text, which would be a kind of its own. On a CPU the compiler needs a C++ compiler at hand.

Not together with CUDA graphs, and the results differ from the plain ones in the last bits: fused operations round
less often.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from backend import paths
from backend.errors import LensError, UsageError, first_line
from backend.model.transformer import BlockModulation, LensTransformer2DModel

VARIANTS = 64  # of one piece of code
COMPILERS = ("g++", "c++", "clang++")  # what torch looks for where CXX names none


def compile_blocks(network: LensTransformer2DModel) -> None:
    """Let the blocks be compiled when they first run. Raises UsageError where that cannot work here."""
    device = network.img_in.weight.device
    check_compiler(device)
    _keep_on_disk()
    allow_variants()
    for block in list(network.blocks())[:-1]:
        block.forward = _with_own_storage(torch.compile(block.forward, dynamic=True, fullgraph=True))


def allow_variants() -> None:
    """Let the compiler make up to VARIANTS of a piece of code; call it before the code first runs.

    Sizes are symbols, but some decisions hang on them: 16 pictures of 252 tokens are at most 4,096 rows, those of 260
    tokens are more. torch stops at eight variants: what needs a ninth then runs uncompiled, or raises with `fullgraph`.
    """
    from torch._dynamo import config  # slow to import, as all of the compiler

    config.recompile_limit = max(config.recompile_limit, VARIANTS)


def _with_own_storage(forward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`LensBlock.forward`, given its modulation as tensors that begin where their storage begins.

    The rows of a folded schedule begin somewhere in a table; the compiler takes offset 0, that of the very first one,
    for a constant, and would compile everything once more for the second block.
    """

    def call(image: Tensor, text: Tensor, m: BlockModulation, rope: Tensor, **rest: bool) -> tuple[Tensor, Tensor]:
        return forward(image, text, BlockModulation(m.image.clone(), m.text.clone()), rope, **rest)

    return call


@contextmanager
def failing_as_ours() -> Iterator[None]:
    """The compiler's own failures as a LensError; nothing that is compiled runs outside of this."""
    try:
        yield
    except RuntimeError as error:
        # Asked by name: importing torch._dynamo to know its class would cost every run 1.2 s.
        if not any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
            raise
        raise LensError(f"torch.compile failed: {first_line(error)}", hint="Drop --compile.") from error


def check_compiler(device: torch.device) -> None:
    """Raises UsageError with what is missing for compiling on this device."""
    if device.type == "mps":
        raise UsageError("--compile does not work on mps", hint="drop --compile")
    if device.type == "cpu" and sys.platform != "win32":
        named = os.environ.get("CXX")
        if not any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
            raise UsageError(
                "--compile needs a C++ compiler, and there is none on PATH",
                hint="install g++ or clang++, or drop --compile",
            )


def _keep_on_disk() -> None:
    """Compiled code goes to our cache folder, unless the person has named another one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # torch writes its own default (a folder of the system's temporary files) into the variable when it first looks.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(paths.inductor_dir())
    os.environ.setdefault("TRITON_CACHE_DIR", str(paths.triton_dir()))
