"""What the updates of a step do: warm, fake model and discriminator, student. The order is that of the loop.

Lens paper, Appendix D. Everything random is a function of (seed, update, place of the picture, what it is for): the
global batch decides what an update computes, not the number of ranks, and a run that is killed between two updates of a
step comes to the same numbers when it does the step again. The student's step on the grid is drawn for an update, the
same on all ranks, since sharded networks wait for each other.

The student's backward pass begins at its clean picture: what the losses say of it is gathered there first, term by
term. So the three networks never share a graph, a view of the backbone stands for one role at a time, and the share of
each term is known.

Legend: B pictures, N image tokens, C packed channels, H heads; L text tokens, T text-encoder layers, F features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from backend import sampling
from train.distill.config import DistillConfig
from train.distill.pictures import Pictures
from train.distill.roles import Roles, trained
from train.losses import critic as critic_losses
from train.losses import dmd
from train.losses.backward import Simulated, simulate
from train.losses.critic import Heads
from train.losses.sums import clean, column, picture_mean
from train.rl.chance import unit
from train.run.batch import Grid, Group, Loaded, share
from train.run.distributed import Ranks
from train.run.learner import Diverged, Learner

LOSSES = ("loss_fake", "loss_critic", "r1", "right_real", "right_fake")  # of an update of fake and discriminator


@dataclass
class Learners:
    """The networks, and what is trained of them."""

    roles: Roles
    student: Learner[nn.Module]
    fake: Learner[nn.Module]
    critic: Learner[Heads]

    @property
    def all(self) -> tuple[Learner[nn.Module], Learner[nn.Module], Learner[Heads]]:
        return self.student, self.fake, self.critic


@dataclass(frozen=True)
class Asked:
    """What the pictures of a pass are asked for."""

    text_BLTF: Tensor
    mask_BL: Tensor | None  # True for real tokens; None: all are
    grid: Grid


class Passes:
    """The passes of updates, their random numbers, and the networks' answers."""

    def __init__(self, config: DistillConfig, ranks: Ranks, pictures: Pictures) -> None:
        self.config, self.ranks, self.pictures = config, ranks, pictures
        # Sharded parameters come in the compute precision already.
        self.autocast = config.machine.compute == "bfloat16" and ranks.mesh is None

    def of(self, number: int) -> list[OnePass]:
        """This rank's passes of an update; every rank has as many."""
        groups = share(
            self.pictures.groups(number), rank=self.ranks.rank, world=self.ranks.world,
            micro_batch=self.config.machine.micro_batch, average="sample",
        )  # fmt: skip
        return [OnePass(self.config.seed, number, group, self.pictures.load(number, group)) for group in groups]

    def velocity(self, network: nn.Module, x_BNC: Tensor, t_B: Tensor, asked: Asked) -> Tensor:
        """(B, N, C). Each call has an autocast of its own, for the factors it has cast may be exchanged."""
        with torch.autocast(x_BNC.device.type, torch.bfloat16, enabled=self.autocast):
            return network(x_BNC, t_B, asked.text_BLTF, asked.grid, asked.mask_BL)

    def without_text(self, network: nn.Module, x_BNC: Tensor, t_B: Tensor, asked: Asked) -> Tensor:
        """(B, N, C) of inference's unconditional branch: no text token at all."""
        return self.velocity(network, x_BNC, t_B, Asked(asked.text_BLTF[:, :0], None, asked.grid))

    def features(
        self, network: nn.Module, taps: Sequence[int], x_BNC: Tensor, t_B: Tensor, asked: Asked
    ) -> list[Tensor]:
        """(B, N, D) of each tapped block."""
        with torch.autocast(x_BNC.device.type, torch.bfloat16, enabled=self.autocast):
            found = network(x_BNC, t_B, asked.text_BLTF, asked.grid, asked.mask_BL, taps=taps)
        return list(found.unbind(0))

    def along(self, network: nn.Module, asked: Asked) -> Callable[[Tensor, float], Tensor]:
        """The network as a sampler asks it."""
        return lambda x, sigma: self.velocity(network, x, torch.full((len(x),), sigma, device=x.device), asked)

    def guided(self, network: nn.Module, asked: Asked, guidance: float) -> Callable[[Tensor, float], Tensor]:
        """The network as it is served: guided against the branch without text, rescaled to the norm of the other."""

        def velocity(x: Tensor, sigma: float) -> Tensor:
            t_B = torch.full((len(x),), sigma, device=x.device)
            conditional = self.velocity(network, x, t_B, asked)
            if guidance == 1.0:
                return conditional
            return sampling.guide(conditional, self.without_text(network, x, t_B, asked), guidance)

        return velocity


class OnePass:
    """Some pictures of an update that pass the networks together."""

    def __init__(self, seed: int, number: int, group: Group, loaded: Loaded) -> None:
        self.seed, self.number, self.group, self.real_BNC = seed, number, group, loaded.x0_BNC.float()
        self.asked = Asked(loaded.text_BLTF, loaded.mask_BL, group.grid)
        self.weights_B = torch.tensor(group.weights, device=loaded.x0_BNC.device)
        self.tokens = loaded.x0_BNC.shape[1]

    def noise(self, what: str) -> Tensor:
        """(B, N, C) standard normal, on the device."""
        shape = tuple(self.real_BNC.shape[1:])
        rows = [torch.randn(shape, generator=self._generator(what, place)) for place in self.group.places]
        return torch.stack(rows).to(self.real_BNC.device)

    def levels(self, term: str, mu: float, step_level: float) -> Tensor:
        """(B,) noise level of a term, a row of `dmd.LEVELS`."""
        uniform = [torch.rand((), generator=self._generator(f"level {term}", place)) for place in self.group.places]
        return dmd.noise_levels(dmd.LEVELS[term], torch.stack(uniform), mu, step_level).to(self.real_BNC.device)

    def _generator(self, what: str, place: int) -> torch.Generator:
        digest = hashlib.blake2b(f"distill {self.seed} {self.number} {place} {what}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def place_on_grid(config: DistillConfig, number: int) -> int:
    """The student's step that update `number` is about: each as likely (the paper does not say)."""
    return int(unit("distill step", config.seed, number) * config.grid_steps)


def draw_student(passes: Passes, network: nn.Module, one: OnePass, k: int) -> Simulated:
    """The student's picture after its step k, met on its own way down the grid that it is served on."""
    config = passes.config
    grid = sampling.schedule(one.tokens, config.grid_steps)
    renoise = torch.stack([one.noise(f"again {j}") for j in range(k)]) if config.student.renoise and k else None
    return simulate(passes.along(network, one.asked), one.noise("start"), grid, k, renoise)


def _shift(config: DistillConfig, one: OnePass) -> float:
    return sampling.empirical_mu(one.tokens, config.grid_steps)


def _at(x0_BNC: Tensor, eps_BNC: Tensor, sigma_B: Tensor) -> Tensor:
    sigma = column(sigma_B, x0_BNC)
    return (1 - sigma) * x0_BNC + sigma * eps_BNC


# ------------------------------------------------------------------------------------- the fake model and the critic


def learn_to_tell(passes: Passes, learners: Learners, number: int, rate: float) -> dict[str, float]:
    """One update of the fake model and of the discriminator, on fresh pictures of the student.

    `rate`: share of the configured rates. Raises Diverged on every rank before either has moved.
    """
    config, fake, critic = passes.config, learners.fake, learners.critic
    k = place_on_grid(config, number)
    fake.optimizer.zero_grad()
    critic.optimizer.zero_grad()
    sums: dict[str, float] = dict.fromkeys(LOSSES, 0.0)
    for one in passes.of(number):
        with torch.no_grad(), learners.roles.as_("student") as network:
            x0 = draw_student(passes, network, one, k).x0_BNC
        sums["loss_fake"] += _fake(passes, learners, one, x0)
        for name, value in _critic(passes, learners, one, x0).items():
            sums[name] += value
    totals = dict(zip(sums, passes.ranks.sums([*sums.values()]), strict=True))
    norms = {"norm_fake": fake.clip(config.optim.clip), "norm_critic": critic.clip(config.optim.clip)}
    _all_finite({**totals, **norms})
    fake.move(rate * config.fake.learning_rate)
    critic.move(rate * config.critic.learning_rate)
    fake.optimizer.zero_grad()  # of whole weights only one network's gradients may lie in memory
    return {**totals, **norms}


def _fake(passes: Passes, learners: Learners, one: OnePass, x0: Tensor) -> float:
    sigma = one.levels("fake", _shift(passes.config, one), 1.0)
    eps = one.noise("fake")
    with learners.roles.as_("fake") as network:
        v = passes.velocity(network, _at(x0, eps, sigma), sigma, one.asked)
        loss = (dmd.fake_losses(v, x0, eps) * one.weights_B).sum()
        learners.fake.backward(loss)
    return float(loss.detach())


def _critic(passes: Passes, learners: Learners, one: OnePass, x0: Tensor) -> dict[str, float]:
    """Real, moved and student pictures at one level; the features carry no gradient, so that only the heads learn."""
    config, heads = passes.config, learners.critic.model
    sigma = one.levels("critic", _shift(config, one), 1.0)
    real = _at(one.real_BNC, one.noise("real"), sigma)
    moved = critic_losses.move(real, one.noise("moved"), config.critic.r1_step)
    fake = _at(x0, one.noise("false"), sigma)
    with torch.no_grad(), learners.roles.as_("teacher") as network:
        seen = [passes.features(network, heads.taps, x, sigma, one.asked) for x in (real, moved, fake)]
    d = [heads(features, one.asked.grid) for features in seen]
    losses = critic_losses.critic_losses(d[0], d[2])
    r1 = critic_losses.r1_losses(d[0], d[1], config.critic.r1_weight)
    learners.critic.backward(((losses + r1) * one.weights_B).sum())
    rows = {
        "loss_critic": losses, "r1": picture_mean((d[0] - d[1]).square()),
        "right_real": picture_mean((d[0] > 0).float()), "right_fake": picture_mean((d[2] < 0).float()),
    }  # fmt: skip
    return {name: float((value.detach() * one.weights_B).sum()) for name, value in rows.items()}


# --------------------------------------------------------------------------------------------------------- the student


def learn_to_draw(passes: Passes, learners: Learners, number: int, rate: float) -> dict[str, float]:
    """One update of the student; then the fake model nears it. Raises Diverged on every rank before it has moved."""
    config, student = passes.config, learners.student
    k = place_on_grid(config, number)
    student.optimizer.zero_grad()
    sums: dict[str, float] = {}
    for one in passes.of(number):
        with learners.roles.as_("student") as network:
            made = draw_student(passes, network, one, k)
        x0 = made.x0_BNC.detach()
        gradient = torch.zeros_like(x0)
        level = 1.0 - k / config.grid_steps
        for name, (term, values) in _terms(passes, learners, one, x0, level).items():
            gradient += term
            values = {**values, f"pull_{name}": _length(term, one)}
            for key, value in values.items():
                sums[key] = sums.get(key, 0.0) + value
        with learners.roles.as_("student"):
            student.backward((made.x0_BNC * gradient).sum())
    totals = dict(zip(sums, passes.ranks.sums([*sums.values()]), strict=True))
    norm = student.clip(config.optim.clip)
    _all_finite({**totals, "norm_student": norm})
    student.move(rate * config.learning_rate)
    student.optimizer.zero_grad()
    if config.fake.ida:
        dmd.ida(trained(learners.roles.fake), trained(learners.roles.student), config.fake.ida)
    return {**totals, "norm_student": norm, "grid_step": float(k)}


Term = tuple[Tensor, dict[str, float]]  # gradient on x (B, N, C) with the pictures' weights, numbers for the log


def _terms(passes: Passes, learners: Learners, one: OnePass, x0: Tensor, level: float) -> dict[str, Term]:
    """The gradient on x of each term of the student's loss: matching, augmentation, critic."""
    loss = passes.config.student
    out: dict[str, Term] = {}
    if loss.matching_weight:
        out["dm"] = _matching(passes, learners, one, x0, level)
        out["ca"] = _augmentation(passes, learners, one, x0, level)
    if loss.critic_weight:
        out["critic"] = _adversarial(passes, learners, one, x0, level)
    return out


@torch.no_grad()
def _matching(passes: Passes, learners: Learners, one: OnePass, x0: Tensor, level: float) -> Term:
    sigma = one.levels("matching", _shift(passes.config, one), level)
    x = _at(x0, one.noise("matching"), sigma)
    with learners.roles.as_("teacher") as network:
        real = passes.velocity(network, x, sigma, one.asked)
    with learners.roles.as_("fake") as network:
        fake = passes.velocity(network, x, sigma, one.asked)
    gap = float((dmd.relative_gap(real, fake) * one.weights_B).sum())
    gradient = dmd.matching_gradient(real, fake, sigma)
    return _through_proxy(passes, one, x0, gradient, clean(x, real, sigma)), {"gap": gap}


@torch.no_grad()
def _augmentation(passes: Passes, learners: Learners, one: OnePass, x0: Tensor, level: float) -> Term:
    sigma = one.levels("augmentation", _shift(passes.config, one), level)
    x = _at(x0, one.noise("augmentation"), sigma)
    with learners.roles.as_("teacher") as network:
        real = passes.velocity(network, x, sigma, one.asked)
        none = passes.without_text(network, x, sigma, one.asked)
    gradient = dmd.augmentation_gradient(real, none, sigma, passes.config.student.guidance)
    return _through_proxy(passes, one, x0, gradient, clean(x, real, sigma)), {}


def _through_proxy(passes: Passes, one: OnePass, x0: Tensor, gradient: Tensor, x_real: Tensor) -> Tensor:
    """(B, N, C) gradient of the proxy loss on x, with its weight and the pictures'."""
    loss = passes.config.student
    with torch.enable_grad():
        x = x0.detach().requires_grad_()
        losses = dmd.proxy_losses(x, gradient, dmd.normaliser(loss.normaliser, x0, x_real))
        (found,) = torch.autograd.grad(loss.matching_weight * (losses * one.weights_B).sum(), x)
    return found


def _adversarial(passes: Passes, learners: Learners, one: OnePass, x0: Tensor, level: float) -> Term:
    """Through the frozen teacher's features to x; nothing of the teacher or of the heads gets a gradient."""
    sigma = one.levels("critic", _shift(passes.config, one), level)
    x = x0.detach().requires_grad_()
    heads = learners.critic.model
    with learners.roles.as_("teacher") as network:
        features = passes.features(network, heads.taps, _at(x, one.noise("critic"), sigma), sigma, one.asked)
        losses = critic_losses.generator_losses(heads(features, one.asked.grid))
        weight = passes.config.student.critic_weight
        (found,) = torch.autograd.grad(weight * (losses * one.weights_B).sum(), x)
    return found, {"loss_critic_student": float((losses.detach() * one.weights_B).sum())}


def _length(term: Tensor, one: OnePass) -> float:
    """Mean length over the pictures of a term's gradient on x, as the paper's loss weighs it."""
    weights = one.weights_B.clamp(min=1e-12)
    return float((term.flatten(1).norm(dim=1) / weights * one.weights_B).sum())


# ---------------------------------------------------------------------------------------------------- the warm stage


def learn_guidance(passes: Passes, learners: Learners, number: int, guidance: float, rate: float) -> dict[str, float]:
    """Regress the student on the guided teacher's velocities along the teacher's own way down the grid.

    `rate`: the rate itself. Raises Diverged on every rank before it has moved.
    """
    config, student = passes.config, learners.student
    student.optimizer.zero_grad()
    total = 0.0
    for one in passes.of(number):
        grid = sampling.schedule(one.tokens, config.grid_steps)
        way: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad(), learners.roles.as_("teacher") as network:
            guided, x = passes.guided(network, one.asked, guidance), one.noise("start")
            for sigma, following in pairwise(grid):
                v = guided(x, sigma).float()
                way.append((x, v))
                x = x + (following - sigma) * v
        with learners.roles.as_("student") as network:
            for (x, v), sigma in zip(way, grid, strict=False):
                found = passes.along(network, one.asked)(x, sigma)
                loss = (picture_mean((found.float() - v).square()) * one.weights_B).sum() / config.grid_steps
                student.backward(loss)
                total += float(loss.detach())
    (loss,) = passes.ranks.sums([total])
    norm = student.clip(config.optim.clip)
    _all_finite({"loss_warm": loss, "norm_student": norm})
    student.move(rate)
    return {"loss_warm": loss, "norm_student": norm}


def _all_finite(values: dict[str, float]) -> None:
    broken = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if broken is not None:
        raise Diverged(f"{broken} {values[broken]:g}")
