"""Train Lens-Nano's language model: its tokenizer, then a small GPT-OSS on `train.world.dialogues`.

The result is frozen: the transformer reads its residual stream, llama.cpp runs it as the reasoner.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F

from backend.denoising.compile import allow_variants
from backend.model.text_encoder import Block, LensGptOssEncoder
from backend.params import TemplateParams, TextEncoderParams
from backend.text.harmony import system_text
from train.run import checkpoints
from train.run.distributed import Ranks
from train.run.feed import Feed
from train.run.learner import Learner
from train.run.metrics import Metrics
from train.run.optim import muon_and_adamw
from train.run.stopping import Stopper, check_finite
from train.world.dialogues import LISTING, MAKERS, rewrite_pair
from train.world.scene_text import dense
from train.world.scenes import sample_scene

SPECIAL = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>",
    "<|message|>", "<|call|>",
)  # fmt: skip
# The o200k split of gpt-oss, which llama.cpp knows as pre-tokenizer "gpt-4o".
O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

RATE = "language.learning_rate"  # what `train.recipes.NanoConfig` calls the rate


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    params: TextEncoderParams
    run_dir: Path
    steps: int = 5000
    tokens_per_step: int = 4096  # upper bound, padding included
    kinds: tuple[tuple[str, float], ...] = (("rewrite", 0.5), ("describe", 0.22), ("list", 0.13), ("repeat", 0.15))
    learning_rate: float = 2e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.05
    seed: int = 0
    workers: int = 1
    save_every: int = 500
    device: str = "cpu"
    compile: bool = True  # each block: 2.5 times the steps per second on a CPU, a minute to warm up


def train_tokenizer(vocabulary: int, template: TemplateParams, documents: int = 40_000, seed: int = 0) -> Tokenizer:
    """A byte-level BPE of `vocabulary` entries, harmony control tokens last.

    Upper-case words (signs) are left out of the corpus, so that a sign is spelt letter by letter and any word can be
    drawn.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(O200K_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )

    def corpus() -> Iterator[str]:
        rng = random.Random(f"tokenizer {seed}")
        for effort in ("low", "medium"):
            yield from [system_text(template, effort)] * 50
        headings = [f"# Instructions\n\n{text}\n\n" for text in (template.instruction, LISTING)]
        roles = ["system", "developer", "user", "assistant", "analysis", "final"]
        for text in (*headings, template.thinking, *roles):
            yield from [text] * 400
        for _ in range(documents):
            text = dense(sample_scene(rng), rng) if rng.random() < 0.4 else " ".join(rewrite_pair(rng))
            yield " ".join(word for word in text.split(" ") if sum(c.isupper() for c in word) < 2)

    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def make_batch(
    step: int, *, tokenizer_json: str, template: TemplateParams, config_seed: int, kinds: tuple[tuple[str, float], ...],
    tokens: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """ids (B, L) and targets (B, L), -100 where the loss does not count; a function of (seed, step).

    One kind of dialogue a step, so that lengths agree and little is padded.
    """
    tokenizer = _tokenizer(tokenizer_json)
    rng = random.Random(f"language {config_seed} {step}")
    kind = rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
    rows = []
    longest = 0
    while True:
        row = MAKERS[kind](tokenizer, template, rng)
        longest = max(longest, len(row.ids))
        if rows and longest * (len(rows) + 1) > tokens:
            break
        rows.append(row)
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        targets[i, row.start - 1 : n - 1] = ids[i, row.start : n]
    return ids, targets


@functools.cache
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)


def _matrices(name: str, parameter: torch.nn.Parameter) -> int:
    """What Muon takes: the matrices of the blocks, but not the router, whose rows are separate little classifiers."""
    return int(".layers." in name and parameter.dim() >= 2 and "bias" not in name and "router" not in name)


def _network(config: LanguageConfig, device: torch.device) -> LensGptOssEncoder:
    """Random weights, ready to be trained."""
    model = LensGptOssEncoder(config.params, head=True)
    model.reset_parameters(torch.Generator().manual_seed(config.seed))
    model.to(device)
    if config.compile:
        allow_variants()
    for block in model.model.layers:
        assert isinstance(block, Block)
        block.self_attn.explicit = device.type == "cpu"
        if config.compile:
            block.compile(dynamic=True)
    return model


def run(config: LanguageConfig, tokenizer: Tokenizer) -> LensGptOssEncoder:
    """Train to `config.steps`; the same call again resumes. Raises CancelledError where it was asked to stop, with its
    state saved; NumericsError before a step whose loss or gradient is not finite."""
    device = torch.device(config.device)
    ranks, model = Ranks(device), _network(config, device)
    optimizer = muon_and_adamw(model, muon=_matrices, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    learner = Learner(model, optimizer, ranks)
    writer = checkpoints.Writer(config.run_dir, ranks, keep=2, background=False)
    found = checkpoints.latest(config.run_dir, ranks)
    if found is not None:
        learner.restore(found)
    start = 0 if found is None else found.step
    make = functools.partial(
        make_batch,
        tokenizer_json=tokenizer.to_str(),
        template=config.params.template,
        config_seed=config.seed,
        kinds=config.kinds,
        tokens=config.tokens_per_step,
    )
    feed = Feed(make, start=start, stop=config.steps, workers=config.workers)

    def save(done: int) -> None:
        writer.save(done, learner.tensors(), {})

    with Stopper() as stopper, contextlib.closing(Metrics(config.run_dir, start)) as metrics:
        for step, (ids, targets) in stopper.steps(feed, start, config.steps, save=save, save_every=config.save_every):
            scale = min(1.0, (step + 1) / config.warmup) * (
                0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
            )
            ids, targets = ids.to(device), targets.to(device)
            counts = targets >= 0
            with torch.autocast(device.type, torch.bfloat16):
                logits = model.logits(ids, counts)
            loss = F.cross_entropy(logits.float(), targets[counts])
            optimizer.zero_grad()
            learner.backward(loss)
            check_finite(step, loss.item(), learner.clip(1.0), config.run_dir, RATE)
            learner.move(config.learning_rate * scale)
            if (step + 1) % 25 == 0 or step + 1 == config.steps:
                metrics.log(step + 1, loss=loss.item(), batch=float(len(ids)))
    return model
