"""One epoch of reinforcement learning: roll, judge, train, on one process or many.

Each rank draws whole groups, in turn, and has them judged while it draws the next; then all know all verdicts, since
the normaliser is the whole epoch's; then each trains its share of the pairs, and gradients are summed. Whatever the
number of ranks, it is the same epoch.

What overlaps and what cannot: a picture is judged while the next ones are drawn, as its verdict is needed by nobody
yet. No gradient step can be taken before the last verdict is there, because every advantage is divided by the standard
deviation of all of them; and no picture of the next epoch can be drawn before the last step, because the policy that
draws it is what the steps lead to. Drawing ahead from an older policy would be another, off-policy method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.checkpoints.resolve import ModelFiles
from backend.errors import FileError
from backend.lora.own import transformer_sha256
from backend.model.transformer import LensTransformer2DModel
from train.batches.texts import KeptTexts
from train.evals.verifier.verify import Expectation
from train.judge.panel import Panel, PicturesAsked
from train.losses import rewards
from train.losses.nft import OLD_DECAYS, optimality
from train.rl import numbers, rollout, update
from train.rl.config import RLConfig
from train.rl.prompts.prompt_set import PromptSet
from train.rl.rollout import PromptGroup
from train.rl.views import Views
from train.run.distributed import Ranks
from train.run.learner import Diverged, Learner
from train.run.stopping import Stopper, stopped, stopped_before


@dataclass
class Work:
    """What every epoch works on."""

    config: RLConfig
    files: ModelFiles
    training: PromptSet
    expectations: Mapping[str, Expectation]
    texts: KeptTexts
    learner: Learner[LensTransformer2DModel]
    views: Views
    panel: Panel
    say: Callable[[str], None]
    taken: int = 0  # gradient steps so far

    def __post_init__(self) -> None:
        self.base_sha256 = transformer_sha256(self.files)
        self.rule = rewards.RewardRule(**vars(self.config.reward))

    @property
    def ranks(self) -> Ranks:
        return self.learner.ranks

    def rate(self) -> float:
        """Of the next gradient step."""
        warmup = self.config.optim.warmup
        return self.config.learning_rate * (min(1.0, (self.taken + 1) / warmup) if warmup else 1.0)


def run_epoch(work: Work, number: int, stopper: Stopper) -> dict[str, float]:
    """Roll, judge, train; returns the numbers of the log, the same on every rank. Raises LensError on all of them."""
    config, ranks = work.config, work.ranks
    groups = rollout.plan(config, work.files.preset, work.training, number)
    shelf = rollout.Shelf(
        config.run_dir, number, rollout.made_by(config, work.views.old_sha256, work.base_sha256)
    )  # fmt: skip
    began = time.monotonic()
    with ranks.failing_together():
        rows = _roll(work, number, groups[ranks.rank :: ranks.world], shelf, stopper)
    rolled = time.monotonic()
    with ranks.failing_together():
        mine = work.panel.collect(list(rows.values()))
    verdicts = _in_order(ranks.gathered(list(zip(rows, mine, strict=True))))
    judged = time.monotonic()
    given = [[rewards.reward(verdict, work.rule) for verdict in row] for row in verdicts]
    found = rewards.advantages(
        torch.tensor([[0.0 if value is None else value for value in row] for row in given]),
        torch.tensor([[value is None for value in row] for row in given]),
        floor=config.nft.std_floor, clip=config.nft.advantage_clip, least_valid=config.nft.least_valid,
    )  # fmt: skip
    if not found.counted_GK.any():
        work.say(f"epoch {number}: no group has enough rewards, so nothing is learned of it")
    with ranks.failing_together():
        latents = [_latents(rows, group, shelf) for group in groups]
    steps = _train(work, number, groups, latents, found, stopper)
    kinds = [work.panel.journal.judge.kinds(rollout.question_of(g.prompt, work.expectations)) for g in groups]
    return {
        **numbers.of_steps(steps, OLD_DECAYS[config.nft.old].at(work.taken), work.taken),
        **numbers.of_rewards(groups, kinds, verdicts, given, found.spread),
        "spread_within": _mean_spread(ranks, list(rows.values())),
        "seconds_roll": round(rolled - began, 1),
        "seconds_judge": round(judged - rolled, 1),
        "seconds_train": round(time.monotonic() - judged, 1),
    }


def _in_order(each: Sequence[Sequence[tuple[int, list[rewards.Verdict]]]]) -> list[list[rewards.Verdict]]:
    """The verdicts of all ranks' groups, by their place in the epoch."""
    return [row for _, row in sorted((pair for rank in each for pair in rank), key=lambda pair: pair[0])]


def _roll(
    work: Work, number: int, groups: Sequence[PromptGroup], shelf: rollout.Shelf, stopper: Stopper
) -> dict[int, PicturesAsked]:
    """Draw what is not on the shelf, and ask about each group's pictures at once. By place."""
    config = work.config
    rows: dict[int, PicturesAsked] = {}
    for group in groups:
        if stopper.asked:
            raise stopped(number, config.epochs)

        how = rollout.How(
            steps=config.rollout.steps, guidance=group.guidance, at_once=config.rollout.at_once,
            compute=config.machine.compute,
        )  # fmt: skip

        def make(group: PromptGroup = group, how: rollout.How = how) -> Tensor:
            (text,) = work.texts.read([group.prompt.prompt])
            with work.views.old():
                return rollout.draw(work.learner.model, text, group.grid, group.seeds, how)

        question = rollout.question_of(group.prompt, work.expectations)
        row = PicturesAsked(shelf.get(group, make), group.grid, question, f"epoch {number} group {group.place}")
        rows[group.place] = work.panel.ask(row)
    return rows


def _latents(rows: Mapping[int, PicturesAsked], group: PromptGroup, shelf: rollout.Shelf) -> Tensor:
    """(K, N, C) of a group, which another rank may have drawn. Raises FileError where that is not to be seen."""

    def absent() -> Tensor:
        raise FileError(
            f"{shelf.folder}: group {group.place} was drawn by another rank, and is not there",
            hint="a --run-dir that all machines see",
        )

    return rows[group.place].x0_KNC if group.place in rows else shelf.get(group, absent)


def _train(
    work: Work, number: int, groups: Sequence[PromptGroup], latents: Sequence[Tensor], found: rewards.Advantages,
    stopper: Stopper,
) -> list[update.StepTaken]:  # fmt: skip
    """The epoch's gradient steps; then the old policy follows."""
    config, ranks = work.config, work.ranks
    counted = found.counted_GK if config.nft.train_flat else found.counted_GK & ~found.flat_G[:, None]
    names = list(dict.fromkeys(group.prompt.prompt for group in groups))
    epoch = update.EpochPictures(
        number,
        groups,
        latents,
        optimality(found.A_GK, config.nft.advantage_clip),
        counted,
        dict(zip(names, work.texts.read(names), strict=True)),
    )
    done: list[update.StepTaken] = []
    for pairs in update.pairs(config, counted, number):
        if ranks.sums([float(stopper.asked)])[0]:
            raise stopped(number, config.epochs)
        try:
            done.append(update.take_step(config, work.views, work.learner, epoch, pairs, work.rate()))
        except Diverged as error:
            raise stopped_before(work.taken, str(error), config.run_dir, "learning_rate") from error
        work.taken += 1
    work.views.follow(OLD_DECAYS[config.nft.old].at(work.taken))
    if never_differed(done, work.taken):
        work.say(
            f"epoch {number}: current and old were the same policy in every gradient step, so that this is weighted "
            "regression on its own pictures; with nft.gradient_steps above 1, or another nft.old than copy, they differ"
        )
    return done


def never_differed(steps: Sequence[update.StepTaken], taken: int) -> bool:
    """Whether current and old were the same all through an epoch: a fault of the schedule or the rate.

    Not of a run's very first gradient step, nor of the first of several in an epoch: there they are by definition.
    `taken`: gradient steps of the run, this epoch's included.
    """
    return bool(steps) and all(step.deviation == 0 for step in steps) and taken > 1


def _mean_spread(ranks: Ranks, rows: Sequence[PicturesAsked]) -> float:
    """Mean distance between two pictures of a prompt, in the latent's unit: what a policy that collapses loses."""
    each = [numbers.spread(row.x0_KNC) for row in rows]
    total, count = ranks.sums([sum(each), float(len(each))])
    return total / count
