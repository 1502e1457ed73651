"""Linear layers whose weight stays packed: y = x W^T + b, with W decoded for each use and dropped again.

A layer's memory is its file's; the price is one decoding a call, which pays off beside some hundred tokens. Decoding
rounds nothing that decoding at load would not, so a network of these gives the same numbers, to the last bit, as one
whose weights were decoded while it was loaded. Only `fp8.Fp8Linear` also rounds what goes in: it multiplies in fp8.

Activations stay in the network's dtype: those of Lens reach 3e7, so nothing here passes through float16 or int8.
Buffers, not parameters: they travel with `.to(device)` and in the state dict, and nobody trains them.
Legend: O outputs, I inputs, T tokens of all pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Module):
    """A linear layer over packed bytes. `scheme`: name of its row in `backend.packing.schemes`."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, scheme: str, shape: tuple[int, int], packed: Tensor) -> None:
        super().__init__()
        self.scheme = scheme
        self.out_features, self.in_features = shape
        self.register_buffer("packed", packed)
        self.register_buffer("bias", None)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, the bias included."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) in `dtype`, on this layer's device."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.decoded(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.scheme}, bias={self.bias is not None}"
