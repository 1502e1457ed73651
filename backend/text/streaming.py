"""GPT-OSS in torch with one layer's weights at a time: the exact path from token ids to text features.

The published encoder has 21 billion parameters, of which a prompt needs each layer once. So a layer's attention is
read from the memory-mapped files, used and let go; of its experts only those that some token chose are decoded, one
after the other. Measured at the published size (MXFP4, 300 tokens, CPU): 1.24 GB resident at most in bfloat16, 1.13
in float32, of which 0.23 are the libraries and 0.57 pages of the mapped file, which are given back after each layer;
2.6 s a layer on one core.

What it computes is `backend.model.text_encoder`, made of the same modules. What it cannot do: logits, gradients,
padding. Several prompts share one pass over the weights but never a matrix product, so that a prompt's features do
not depend, not even in their last bit, on what was encoded beside it.

Legend: L tokens of one prompt, F width, T tokens that chose one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from backend.checkpoints.compare import compare
from backend.checkpoints.formats import TensorTable
from backend.loading import DTYPES, Uninitialised
from backend.model.tensors import text_encoder_shapes
from backend.model.text_encoder import Block, Experts, Router, Surroundings
from backend.params import TextEncoderParams

_EXPERTS = "mlp.experts."


class StreamingEncoder:
    """Reads a table of tensors layer by layer. Holds no weights itself."""

    def __init__(
        self, table: TensorTable, params: TextEncoderParams, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Raises CheckpointError naming the first missing, unexpected or misshapen tensors; reads none of them."""
        if dtype not in DTYPES:
            raise ValueError(f"{dtype} is not one of {DTYPES}: float16 overflows in this network")
        found = {name: entry.shape for name, entry in table.entries.items() if name != "lm_head.weight"}
        compare(text_encoder_shapes(params, with_head=False), found, table.origin)
        self.table, self.params, self.dtype, self.device = table, params, dtype, torch.device(device)
        # With few experts (Nano) a layer is run whole, as `MoE` does: it is small, and takes fewer steps.
        self.whole = params.num_local_experts <= 2 * params.num_experts_per_tok

    @torch.inference_mode()
    def hidden_states(self, prompts: Sequence[Sequence[int]], take: Sequence[int]) -> list[Tensor]:
        """Per prompt (its tokens, len(take), F): the residual stream right after each block in `take`, no final norm.

        `take` is 0-based and ascending; blocks after its last are not read. Raises CheckpointError.
        """
        streams = [self._embed(ids) for ids in prompts]
        surroundings = [Surroundings(self.params, len(ids), self.device, self.dtype) for ids in prompts]
        taken: list[list[Tensor]] = [[] for _ in prompts]
        for index in range(max(take) + 1):
            self.table.release()
            self._run_layer(index, streams, surroundings)
            if index in take:
                for states, x in zip(taken, streams, strict=True):
                    states.append(x[0])
        self.table.release()
        return [torch.stack(states, dim=1) for states in taken]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """(1, L, F); only the rows of the embedding that occur are read (the whole is 1.2 GB)."""
        name = "model.embed_tokens.weight"
        rows = {number: self.table.part(name, self.dtype, self.device, number, number + 1) for number in set(ids)}
        return torch.cat([rows[number] for number in ids])[None]

    def _run_layer(self, index: int, streams: list[Tensor], surroundings: list[Surroundings]) -> None:
        """Replace every stream by what block `index` makes of it."""
        block = self._load(index)
        around = [s.of(block.window) for s in surroundings]
        if self.whole:
            streams[:] = [block(x, *given) for x, given in zip(streams, around, strict=True)]
            return
        streams[:] = [
            x + block.self_attn(block.input_layernorm(x), *given) for x, given in zip(streams, around, strict=True)
        ]
        normed = [block.post_attention_layernorm(x)[0] for x in streams]
        mixed = self._mix(f"model.layers.{index}.{_EXPERTS}", block.mlp.router, normed)
        streams[:] = [x + y[None] for x, y in zip(streams, mixed, strict=True)]

    def _load(self, index: int) -> Block:
        """Block `index` with its weights, but for the experts where they are read one by one."""
        with torch.device("meta"), Uninitialised():
            block = Block(self.params, index)
        prefix = f"model.layers.{index}."
        names = [name for name in block.state_dict() if self.whole or not name.startswith(_EXPERTS)]
        state = {name: self.table.tensor(prefix + name, self.dtype).to(self.device) for name in names}
        block.load_state_dict(state, strict=self.whole, assign=True)
        return block.eval().requires_grad_(False)

    def _mix(self, prefix: str, router: Router, normed: list[Tensor]) -> list[Tensor]:
        """The routed experts' sum for each (L, F). One expert is in memory at a time, and serves all prompts."""
        choices = [router.choose(x) for x in normed]
        mixed = [torch.zeros_like(x) for x in normed]
        biases = {
            name: self.table.tensor(prefix + name, self.dtype).to(self.device)
            for name in ("gate_up_proj_bias", "down_proj_bias")
        }
        with torch.device("meta"):
            one = Experts(replace(self.params, num_local_experts=1)).requires_grad_(False)
        for expert in torch.cat([index.flatten() for _, index in choices]).unique().tolist():
            state = {name: bias[expert : expert + 1] for name, bias in biases.items()}
            for name in ("gate_up_proj", "down_proj"):
                state[name] = self.table.part(prefix + name, self.dtype, self.device, expert, expert + 1)
            one.load_state_dict(state, assign=True)
            del state  # the next expert must find this one gone
            for x, (weights, index), out in zip(normed, choices, mixed, strict=True):
                token, slot = torch.where(index == expert)
                if len(token):
                    y = one.one(0, x[token]) * weights[token, slot, None]
                    out.index_add_(0, token, y.to(out.dtype))
        return mixed
