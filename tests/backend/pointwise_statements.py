"""The pointwise operations once more, in float64 and in the form of the paper's equations, for the tests of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from backend.kernels.pointwise_torch import Stream


def norm_modulate(x: Tensor, weight: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    x, weight, shift, scale = (t.double() for t in (x, weight, shift, scale))
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight * (1 + scale) + shift


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    return x.double() + gate.double() * update.double()


def silu_mul(a: Tensor, b: Tensor) -> Tensor:
    return a.double() * torch.sigmoid(a.double()) * b.double()


def joint_qkv(
    streams: list[Stream], rope: Tensor, heads: int, eps: float, *, query_streams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A pair (2i, 2i + 1) is multiplied by the matrix of its rotation."""
    cos, sin = rope.double().unbind(-1)
    matrices = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)  # (S, K/2, 2, 2)
    queries, keys, values = [], [], []
    for qkv, q_weight, k_weight in streams:
        b, s, _ = qkv.shape
        q, k, v = qkv.double().view(b, s, 3, heads, -1).unbind(2)
        for x, weight, into in ((q, q_weight, queries), (k, k_weight, keys)):
            into.append(x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double())
        values.append(v)

    def turn(x: Tensor) -> Tensor:
        return torch.einsum("spij,bshpj->bshpi", matrices[: x.shape[1]], x.unflatten(-1, (-1, 2))).flatten(-2)

    q, k, v = turn(torch.cat(queries[:query_streams], 1)), turn(torch.cat(keys, 1)), torch.cat(values, 1)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
