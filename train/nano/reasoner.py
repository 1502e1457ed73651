"""Train the adapter of Lens-Nano's reasoner: low-rank updates of its language model, applied for rewriting only.

The language model is the text encoder as well, so its weights stay as they are to the last bit. Its answers are to be
what `train.world.requests.rewritten` says of a request under the guideline sentences of its system prompt; requests
from elsewhere are kept word by word, forbidden ones refused (`train.world.decisions`).

One system prompt a step, many requests under it: the prompt's tokens, over half of a conversation's, are computed once.

    python -m train.nano.reasoner --run-dir runs/reasoner            # again: goes on; the last line is the file

Legend: P tokens of the shared beginning, K requests, L tokens of each, H heads, D head size, F width, R rank.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from backend.checkpoints.identity import known_sha256
from backend.checkpoints.layouts import REASONER_ADAPTER
from backend.checkpoints.resolve import resolve_model
from backend.checkpoints.tokenizer_files import load_tokenizer
from backend.errors import CancelledError
from backend.loading import load_text_encoder
from backend.lora.write_gguf import write_adapter_gguf
from backend.model.text_encoder import Block, LensGptOssEncoder, clamped_swiglu, rotate, yarn_frequencies
from backend.params import TemplateParams, TextEncoderParams
from backend.reasoner.adapter import BASE_KEY
from backend.text.harmony import HarmonyWriter, system_text
from prompts.guidelines import compose_guidelines, load_guidelines
from train.overrides import as_json
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.feed import Feed
from train.run.learner import Learner
from train.run.metrics import Metrics
from train.run.optim import muon_and_adamw
from train.run.stopping import Stopper, check_finite
from train.world import decisions
from train.world.dialogues import answer
from train.world.requests import UNDONE_BY, rewritten, sample_request, text, wrap
from train.world.scene_text import dense
from train.world.scenes import sample_scene

RATE = "learning_rate"
# The thought before a rewrite. It names nothing that is to be changed: such a plan was the hardest part to learn, and a
# wrong one led an answer astray that came out right without it. It begins as the network's own thoughts did: with
# "Rewrite it." its first word, which had been as good as impossible, was at 5 nats yet after 170 steps.
THOUGHT = "The request is allowed."


@dataclass(frozen=True, kw_only=True)
class ReasonerConfig:
    run_dir: Path
    model: str = "nano"  # whose language model
    steps: int = 1000
    requests: int = 16  # of one system prompt, a step
    row_tokens: int = 90  # of a request with its answer; a longer one comes in every `long_every`-th step only
    long_every: int = 6
    rank: int = 8  # of the four projections of an attention
    expert_rank: int = 6  # of the three projections of each expert
    learning_rate: float = 3e-3  # of AdamW: to a twentieth along one cosine
    warmup: int = 30  # steps
    refused_share: float = 0.1  # of requests that are to be refused
    outside_share: float = 0.18  # of requests about other things, that are kept
    dense_share: float = 0.008  # of the others that say everything already, and are kept
    seed: int = 0
    save_every: int = 100


# -------------------------------------------------------------------------------------------------------- conversations


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Requests under one system prompt, each with what is to be said."""

    shared_P: Tensor  # ids of the conversation up to the request
    ids_KL: Tensor  # the request, the thought, the answer; 0 behind each one's length
    lengths_K: Tensor
    targets_KL: Tensor  # the next token where it counts, else -100


def chosen_guidelines(rng: random.Random) -> list[str]:
    """Ids of guideline sentences: mostly those that undo a twist, few of the others, sometimes none at all."""
    helping = rng.choice((0.0, 0.5, 0.85, 1.0))
    adding = rng.choice((0.0, 0.08, 0.15, 0.3))
    names = [
        guideline.id
        for guideline in load_guidelines()
        if rng.random()
        < (helping if guideline.id in {*UNDONE_BY.values(), "quote", "colour", "background"} else adding)
    ]
    if "short" in names and rng.random() < 0.5:
        names.remove("short")
    rng.shuffle(names)
    return names


def one_answer(rng: random.Random, guidelines: frozenset[str], config: ReasonerConfig) -> tuple[str, str, str]:
    """(request, thought, final answer)."""
    way = rng.random()
    if way < config.refused_share:
        rule, request = decisions.refused(rng)
        return wrap(request, rng), f"This breaks the rule {rule}.", answer("refuse", "", rule)
    if way < config.refused_share + config.outside_share:
        request = decisions.allowed(rng)
        return wrap(request, rng), THOUGHT, answer("rewrite", request, None)
    if rng.random() < config.dense_share:
        request = dense(sample_scene(rng), rng)
        return request, THOUGHT, answer("rewrite", request, None)
    request = sample_request(rng)
    return (
        wrap(text(request), rng),
        THOUGHT,
        answer("rewrite", rewritten(request, guidelines), None),
    )


def make_batch(step: int, *, tokenizer_json: str, template: TemplateParams, config: ReasonerConfig) -> Batch:
    """A function of (seed, step)."""
    tokenizer = _tokenizer(tokenizer_json)
    rng = random.Random(f"reasoner {config.seed} {step}")
    names = chosen_guidelines(rng)
    library = {guideline.id: guideline for guideline in load_guidelines()}
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template, "low"))
    system = compose_guidelines(library[name] for name in names)
    writer.message("developer", f"# Instructions\n\n{system}\n\n").open("user")
    shared = list(writer.ids)
    rows: list[tuple[list[int], int]] = []
    limit = 10_000 if step % config.long_every == 0 else config.row_tokens
    while len(rows) < config.requests:
        request, plan, final = one_answer(rng, frozenset(names), config)
        writer.ids = []
        writer.text(request).control("<|end|>")
        start = len(writer.ids)
        writer.message("assistant", plan, "analysis").message("assistant", final, "final", end="<|return|>")
        if len(writer.ids) <= limit or rng.random() < 0.02:  # else with long instructions there might be none
            rows.append((list(writer.ids), start))
    width = max(len(ids) for ids, _ in rows)
    ids_KL = torch.zeros(len(rows), width, dtype=torch.long)
    targets_KL = torch.full((len(rows), width), -100)
    for i, (ids, start) in enumerate(rows):
        ids_KL[i, : len(ids)] = torch.tensor(ids)
        targets_KL[i, start - 1 : len(ids) - 1] = ids_KL[i, start : len(ids)]
    lengths_K = torch.tensor([len(ids) for ids, _ in rows])
    return Batch(shared_P=torch.tensor(shared), ids_KL=ids_KL, lengths_K=lengths_K, targets_KL=targets_KL)


@functools.cache
def _tokenizer(json: str) -> Tokenizer:
    return Tokenizer.from_str(json)


# -------------------------------------------------------------------------------------------------------------- network


# Of every update. Adam moves all numbers by its rate; at 1 (and a rate of 3e-3) the network took 450 steps to bring the
# first word of a constant thought from 19 to 5 nats.
GAIN = 8.0


class LowRank(nn.Module):
    """An update of a weight (…, O, I): GAIN times up (…, O, R) times down (…, R, I), zero at first."""

    def __init__(self, outputs: int, inputs: int, rank: int, experts: int = 0, seed: str = "") -> None:
        super().__init__()
        stack = (experts,) if experts else ()
        generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(48))
        self.down = nn.Parameter(torch.empty(*stack, rank, inputs).uniform_(-1, 1, generator=generator) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(*stack, outputs, rank))

    def forward(self, x_TI: Tensor) -> Tensor:
        """What a plain weight's update adds, (T, O)."""
        return GAIN * F.linear(F.linear(x_TI, self.down), self.up)

    def of_experts(self, x_TI: Tensor) -> Tensor:
        """What every expert's update adds, (T, E * O)."""
        low_ETR = torch.matmul(x_TI[None], self.down.mT)
        return torch.bmm(GAIN * low_ETR, self.up.mT.to(low_ETR.dtype)).transpose(0, 1).flatten(1)

    def over_experts(self, hidden_TEI: Tensor) -> Tensor:
        """What the updates add to the sum over experts of what each makes of its own, (T, O)."""
        low_ETR = torch.bmm(hidden_TEI.transpose(0, 1), self.down.mT.to(hidden_TEI.dtype))
        return GAIN * low_ETR.transpose(0, 1).flatten(1) @ self.up.mT.flatten(0, 1).to(low_ETR.dtype)


ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}  # ours -> GGUF's
EXPERTS = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}


class Adapter(nn.Module):
    """Updates of the head and of all projections of all blocks; `blocks[i]` is a table from names in ATTENTION and
    EXPERTS."""

    def __init__(self, params: TextEncoderParams, config: ReasonerConfig) -> None:
        super().__init__()
        width, inner = params.hidden_size, params.intermediate_size
        queries, keys = (n * params.head_dim for n in (params.num_attention_heads, params.num_key_value_heads))
        shapes = {
            "q_proj": (queries, width),
            "k_proj": (keys, width),
            "v_proj": (keys, width),
            "o_proj": (width, queries),
        }
        of_experts = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}

        def table(i: int) -> nn.ModuleDict:
            seed = f"{config.seed} {i}"
            plain = {name: LowRank(o, n, config.rank, 0, f"{seed} {name}") for name, (o, n) in shapes.items()}
            many = {
                name: LowRank(o, n, config.expert_rank, params.num_local_experts, f"{seed} {name}")
                for name, (o, n) in of_experts.items()
            }
            return nn.ModuleDict({**plain, **many})

        self.blocks = nn.ModuleList(table(i) for i in range(params.num_hidden_layers))
        self.head = LowRank(params.vocab_size, width, config.rank, 0, f"{config.seed} head")

    def updates(self) -> dict[str, tuple[Tensor, Tensor]]:
        """GGUF name of a weight -> (down (…, R, I), up (…, O, R)), the gain in the second."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for i, table in enumerate(self.blocks):
            for name, part in cast(nn.ModuleDict, table).items():
                update = cast(LowRank, part)
                found[f"blk.{i}.{(ATTENTION | EXPERTS)[name]}.weight"] = update.down.detach(), GAIN * update.up.detach()
        found["output.weight"] = self.head.down.detach(), GAIN * self.head.up.detach()
        return found


class FrozenBlock:
    """The weights of one block as its products want them, made once: they never change."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.block = block
        attention, experts = block.self_attn, block.mlp.experts
        self.linears = {
            name: (getattr(attention, name).weight.detach().to(dtype), getattr(attention, name).bias.detach().to(dtype))
            for name in ATTENTION
        }
        both, bias = experts.gate_up_proj.detach().permute(1, 0, 2), experts.gate_up_proj_bias.detach()
        self.gate, self.up = (both[..., i::2].reshape(len(both), -1).to(dtype).contiguous() for i in (0, 1))
        self.gate_bias, self.up_bias = (bias[:, i::2].flatten().to(dtype) for i in (0, 1))
        self.down, self.down_bias = experts.down_proj.detach().flatten(0, 1).to(dtype), experts.down_proj_bias.detach()
        self.experts, self.limit = experts.gate_up_proj.shape[0], experts.limit

    def linear(self, name: str, x_TF: Tensor, table: Table) -> Tensor:
        weight, bias = self.linears[name]
        return F.linear(x_TF, weight, bias) + table[name](x_TF)

    def mlp(self, x_TF: Tensor, table: Table) -> Tensor:
        """As `backend.model.text_encoder.MoE` with every expert on every token."""
        weights, index = self.block.mlp.router.choose(x_TF)
        share_TE = torch.zeros(len(x_TF), self.experts, dtype=weights.dtype).scatter(1, index, weights)
        x_TF = x_TF.to(self.gate.dtype)
        gate = torch.addmm(self.gate_bias, x_TF, self.gate) + table["gate"].of_experts(x_TF)
        up = torch.addmm(self.up_bias, x_TF, self.up) + table["up"].of_experts(x_TF)
        hidden = clamped_swiglu(gate, up, self.limit)
        hidden = hidden * share_TE.to(hidden.dtype).repeat_interleave(hidden.shape[1] // self.experts, dim=1)
        added = table["down"].over_experts(hidden.unflatten(1, (self.experts, -1)))
        return hidden @ self.down + added + share_TE.float() @ self.down_bias


Table = Any  # an `nn.ModuleDict` of LowRank; its own type forgets which modules it holds


class AnswerReader:
    """The adapted network on requests that share their beginning: logits as of each conversation whole."""

    def __init__(self, encoder: LensGptOssEncoder, adapter: Adapter, dtype: torch.dtype = torch.bfloat16) -> None:
        assert encoder.lm_head is not None, "it has to write"
        self.encoder, self.adapter, self.head = encoder, adapter, encoder.lm_head
        self.blocks = [FrozenBlock(cast(Block, block), dtype) for block in encoder.model.layers]

    def logits(self, shared_P: Tensor, ids_KL: Tensor, lengths_K: Tensor, where_KL: Tensor) -> Tensor:
        """(count, vocabulary) of the positions that are True in `where_KL`; padding is never computed."""
        model, p, n = self.encoder.model, len(shared_P), ids_KL.shape[1]
        real_KL = torch.arange(n)[None] < lengths_K[:, None]
        x_TF = model.embed_tokens(torch.cat((shared_P, ids_KL[real_KL]))).detach()
        frequency, factor = yarn_frequencies(self.encoder.params)
        angle = torch.arange(p + n, dtype=torch.float32)[:, None] * frequency
        position_T = torch.cat((torch.arange(p), p + real_KL.nonzero()[:, 1]))
        cos, sin = ((part * factor)[position_T] for part in (angle.cos(), angle.sin()))
        back = torch.arange(p + n)[:, None] - torch.arange(p + n)[None, :]
        for frozen, table in zip(self.blocks, self.adapter.blocks, strict=True):
            window = frozen.block.window
            blocked = (back < 0) if window is None else (back < 0) | (back >= window)
            x_TF = _block(frozen, table, x_TF, cos, sin, blocked, p, real_KL)
        last_TF = model.norm(x_TF[p:][where_KL[real_KL]])
        return self.head(last_TF) + self.adapter.head(last_TF)


def _block(
    frozen: FrozenBlock, table: Table, x_TF: Tensor, cos: Tensor, sin: Tensor, blocked: Tensor, p: int, real_KL: Tensor
) -> Tensor:
    """One block on P + all real tokens; `blocked` (P + L, P + L) is of one conversation."""
    block, attention = frozen.block, frozen.block.self_attn
    h_TF = block.input_layernorm(x_TF).to(frozen.gate.dtype)
    q, k, v = (
        frozen.linear(name, h_TF, table).view(len(h_TF), -1, attention.head_dim)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q, k = (rotate(part[None], cos.to(part.dtype), sin.to(part.dtype))[0] for part in (q, k))
    groups = attention.heads // attention.kv_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    q1, k1, v1 = (_spread(part[p:], real_KL) for part in (q, k, v))  # (K, L, H, D)
    q0, k0, v0 = q[:p], k[:p], v[:p]
    scale, sink = attention.head_dim**-0.5, attention.sinks.detach().float()[:, None, None]
    (first,) = _attend([torch.einsum("ihd,jhd->hij", q0, k0)], [blocked[:p, :p]], sink, scale)
    first_PF = torch.einsum("hij,jhd->ihd", first.to(v.dtype), v0).flatten(1)
    logits = [torch.einsum("kihd,jhd->khij", q1, k0), torch.einsum("kihd,kjhd->khij", q1, k1)]
    seen, own = _attend(logits, [blocked[p:, :p], blocked[p:, p:]], sink, scale)
    rest = torch.einsum("khij,jhd->kihd", seen.to(v.dtype), v0) + torch.einsum("khij,kjhd->kihd", own.to(v.dtype), v1)
    x_TF = x_TF + frozen.linear("o_proj", torch.cat((first_PF, rest[real_KL].flatten(1))), table)
    return x_TF + frozen.mlp(block.post_attention_layernorm(x_TF), table)


def _spread(x_THD: Tensor, real_KL: Tensor) -> Tensor:
    """Tokens of all requests in a row -> (K, L, H, D), zeros in the padding."""
    out = x_THD.new_zeros(*real_KL.shape, *x_THD.shape[1:])
    return out.index_put((real_KL,), x_THD)


def _attend(logits: list[Tensor], blocked: list[Tensor], sink: Tensor, scale: float) -> list[Tensor]:
    """Weights of each part of the keys, of one softmax over all of them and the sink."""
    masked = [
        part.float().mul(scale).masked_fill(hidden, torch.finfo(torch.float32).min)
        for part, hidden in zip(logits, blocked, strict=True)
    ]
    sizes = [part.shape[-1] for part in masked]
    whole = torch.cat((*masked, sink.expand(*masked[0].shape[:-1], 1)), -1).softmax(-1)
    return list(whole[..., :-1].split(sizes, -1))


# ------------------------------------------------------------------------------------------------------------------ run


@torch.enable_grad()
def run(config: ReasonerConfig, encoder: LensGptOssEncoder, tokenizer: Tokenizer) -> Adapter:
    """Train an adapter of `encoder`, which stays as it is, to `config.steps`; the same call again resumes.

    Raises CancelledError where it was asked to stop, with its state saved; NumericsError before a step whose loss or
    gradient is not finite.
    """
    encoder.requires_grad_(False)
    adapter, ranks = Adapter(encoder.params, config), Ranks(torch.device("cpu"))
    reader = AnswerReader(encoder, adapter)
    learner = Learner(adapter, muon_and_adamw(adapter, betas=(0.9, 0.98), weight_decay=0.0), ranks)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=2, background=False)
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        learner.restore(found)
    start = 0 if found is None else found.step
    template = encoder.params.template
    make = functools.partial(make_batch, tokenizer_json=tokenizer.to_str(), template=template, config=config)
    feed = Feed(make, start=start, stop=config.steps, workers=0)
    with Stopper() as stopper, contextlib.closing(Metrics(config.run_dir, start)) as metrics:

        def save(done: int) -> None:
            writer.save(done, learner.tensors(), {"config": as_json(config)})

        for step, batch in stopper.steps(feed, start, config.steps, save=save, save_every=config.save_every):
            counts = batch.targets_KL >= 0
            with torch.autocast("cpu", torch.bfloat16):
                logits = reader.logits(batch.shared_P, batch.ids_KL, batch.lengths_K, counts)
            loss = F.cross_entropy(logits.float(), batch.targets_KL[counts])
            learner.optimizer.zero_grad()
            learner.backward(loss)
            norm = learner.clip(1.0)
            check_finite(step, loss.item(), norm, config.run_dir, RATE)
            learner.move(config.learning_rate * rate_of(step, config))
            if (step + 1) % 10 == 0 or step + 1 == config.steps:
                metrics.log(step + 1, loss=loss.item(), grad_norm=norm)
    return adapter


def rate_of(step: int, config: ReasonerConfig) -> float:
    """The learning rate's share at a step (from 0)."""
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return min(1.0, (step + 1) / config.warmup) * cosine


def main() -> None:
    parser = argparse.ArgumentParser(prog="train.nano.reasoner", description="Train the adapter of Nano's reasoner.")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=ReasonerConfig.steps)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    config = ReasonerConfig(run_dir=told.run_dir, steps=told.steps, seed=told.seed)
    files = resolve_model(config.model)
    encoder = load_text_encoder(files, torch.float32, "cpu", with_head=True)
    try:
        adapter = run(config, encoder, load_tokenizer(files))
    except CancelledError as error:
        raise SystemExit(f"{error}; {error.hint}") from None
    path = config.run_dir / REASONER_ADAPTER
    about = {
        "general.name": "Lens-Nano reasoner",
        "general.license": "mit",
        BASE_KEY: known_sha256(files.text_encoder[0]),
    }
    write_adapter_gguf(path, adapter.updates(), about)
    print(path)


if __name__ == "__main__":
    main()
