"""Linears in the types of ggml, as GGUF files hold them; Q8_0 also for weights of any file.

Legend: O outputs, I inputs, B bytes of a packed row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from backend.errors import UsageError
from backend.packing import ggml
from backend.packing.ggml_layout import GGML_BLOCKS, ggml_name
from backend.packing.linears import PackedLinear
from backend.packing.storage import PackedWeight, StoredTensors

Q8_0 = 8  # ggml's number of the type


class GgufLinear(PackedLinear):
    """Any type that `backend.packing.ggml` decodes; `packed` U8 (O, B)."""

    def __init__(self, packed_OB: Tensor, kind: int, width: int) -> None:
        """`kind`: ggml's number of the type; `width`: I."""
        super().__init__(ggml_name(kind), (len(packed_OB), width), packed_OB)
        self.kind = kind

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return ggml.dequantise(self.packed, self.kind, dtype)


def pack(weight_OI: Tensor) -> GgufLinear:
    """ggml's Q8_0 in torch: the same bytes as the gguf package's, on any device. Raises UsageError."""
    block, inputs = GGML_BLOCKS[Q8_0][0], weight_OI.shape[1]
    if inputs % block:
        raise UsageError(
            f"a linear of {inputs} inputs has no Q8_0 form ({block} values a block)", hint="use --quant int8"
        )
    return GgufLinear(ggml.quantise_q8_0(weight_OI), Q8_0, inputs)


def find(files: StoredTensors, stored: str) -> PackedWeight | None:
    """A matrix of a ggml type that torch decodes; None: plain, or of a type that is only ever decoded whole."""
    kind, shape = files.kind(stored), files.shape(stored)
    if not kind.startswith("ggml ") or len(shape) != 2:
        return None
    number = int(kind.removeprefix("ggml "))
    if not ggml.can_dequantise(number):
        return None
    return PackedWeight((shape[0], shape[1]), lambda: GgufLinear(files.packed_rows(stored), number, shape[1]))
