"""What a step of distillation does to whom, and that it is the paper's loss.

Trusted because the student's gradient, which is put together from parts, is held to one plain graph of the paper's
loss, written down here a second time; because what must be zero is zero to the last bit; and because the pictures of a
step are held to the grid that a distilled model is served on.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backend import sampling
from backend.checkpoints.resolve import resolve_model
from backend.loading import load_transformer
from tests.train.distill.small_run import plan, ready, state_of
from tests.train.fine_tuning import CPU, velocity
from train.distill import update
from train.distill.roles import AdapterRoles, AdapterSet
from train.lora.adapters import begin_with, read_start, with_adapters
from train.run.network import choose_attention

FORMS = ("full", "adapters")


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("form", "checkpointing"), [("full", "none"), ("adapters", "full")])
def test_the_students_gradient_is_that_of_the_papers_loss(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, form: str, checkpointing: str
) -> None:
    """One graph from the student's step through the noised picture to the teacher's features and the heads."""
    config = plan(
        tmp_path, tiny, form=form, optim__clip=1e9, student__critic_weight=0.05, fake__ida=0.0, groups=1,
        machine__checkpointing=checkpointing,
    )  # fmt: skip
    _, learners, passes = ready(config)
    update.learn_to_tell(passes, learners, 0, 1.0)  # so that the fake model differs from the teacher
    kept: dict[str, Tensor] = {}
    monkeypatch.setattr(learners.student, "move", lambda rate: kept.update(gradients(learners.roles.student)))
    number = 1
    said = update.learn_to_draw(passes, learners, number, 1.0)

    (one,), roles = passes.of(number), learners.roles
    k, mu = update.place_on_grid(config, number), sampling.empirical_mu(16, 4)
    grid = sampling.schedule(16, 4)
    assert said["grid_step"] == k

    def at(x: Tensor, name: str, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1)
        return (1 - s) * x + s * one.noise(name)

    def answer(role: str, x: Tensor, sigma: Tensor, text: Tensor | None = None) -> Tensor:
        with roles.as_(role) as network:  # pyright: ignore[reportArgumentType]
            if text is not None:
                return network(x, sigma, text, one.asked.grid)
            return network(x, sigma, one.asked.text_BLTF, one.asked.grid, one.asked.mask_BL)

    x = one.noise("start")
    with torch.no_grad():
        for sigma, following in pairwise(grid[: k + 1]):
            x = x + (following - sigma) * answer("student", x, torch.full((2,), sigma))
    loss = torch.zeros(())
    with torch.no_grad():
        x0 = x - grid[k] * answer("student", x, torch.full((2,), grid[k]))
        s_dm, s_ca = one.levels("matching", mu, 1 - k / 4), one.levels("augmentation", mu, 1 - k / 4)
        x_dm, x_ca = at(x0, "matching", s_dm), at(x0, "augmentation", s_ca)
        real, fake = answer("teacher", x_dm, s_dm), answer("fake", x_dm, s_dm)
        text, none = answer("teacher", x_ca, s_ca), answer("teacher", x_ca, s_ca, one.asked.text_BLTF[:, :0])
        targets = []
        for g, x_s, v, s in (
            (s_dm.view(-1, 1, 1) * (real - fake), x_dm, real, s_dm),
            (s_ca.view(-1, 1, 1) * 2.0 * (text - none), x_ca, text, s_ca),  # guidance 3, so 3 - 1
        ):
            norm = (x0 - (x_s - s.view(-1, 1, 1) * v)).abs().mean((1, 2)).clamp(min=0.1)
            targets.append(x0 - g / norm.view(-1, 1, 1))
    drawn = x - grid[k] * answer("student", x, torch.full((2,), grid[k]))
    for target in targets:
        loss = loss + 0.1 * 0.5 * (drawn - target).square().mean()
    # The heads on the teacher, in the same graph; of its parameters none wants a gradient.
    sigma = one.levels("critic", mu, 1 - k / 4)
    if form == "full":
        with roles.as_("teacher") as network:
            features = network(
                at(drawn, "critic", sigma), sigma, one.asked.text_BLTF, one.asked.grid, one.asked.mask_BL,
                taps=learners.critic.model.taps,
            )  # fmt: skip
        logits = learners.critic.model(list(features.unbind(0)), one.asked.grid)
        loss = loss + 0.05 * F.softplus(-logits).mean()
        learners.student.optimizer.zero_grad()
        loss.backward()
        expected = gradients(roles.student)
    else:  # one backbone: two graphs, since blocks that run again need one view; linear, so the sum is the same
        learners.student.optimizer.zero_grad()
        leaf = drawn.detach().requires_grad_()
        with roles.as_("teacher") as network:
            features = network(
                at(leaf, "critic", sigma), sigma, one.asked.text_BLTF, one.asked.grid, one.asked.mask_BL,
                taps=learners.critic.model.taps,
            )  # fmt: skip
            logits = learners.critic.model(list(features.unbind(0)), one.asked.grid)
            (through,) = torch.autograd.grad(0.05 * F.softplus(-logits).mean(), leaf)
        with roles.as_("student"):
            (loss + (drawn * through).sum()).backward()
        expected = gradients(roles.student)
    assert kept.keys() == expected.keys() and len(kept) >= 8
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, rtol=2e-4, atol=1e-8, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_each_update_moves_its_own_network_and_ida_is_exact(tmp_path: Path, tiny: Path, form: str) -> None:
    config = plan(tmp_path, tiny, form=form, fake__ida=0.03)
    _, learners, passes = ready(config)
    begin = state_of(learners)

    def changed(before: dict[str, Tensor]) -> set[str]:
        now = state_of(learners)
        return {n.split(".")[0] for n in before if n.split(".")[1] == "model" and not torch.equal(now[n], before[n])}

    with learners.roles.as_("teacher") as network:
        untouched = velocity(network)
    update.learn_to_tell(passes, learners, 0, 1.0)
    assert changed(begin) == {"fake", "critic"}
    before = state_of(learners)
    update.learn_to_draw(passes, learners, 1, 1.0)
    after = state_of(learners)
    assert changed(before) == {"fake", "student"}
    for name, value in before.items():
        if name.startswith("fake.model."):
            student = after[name.replace("fake.", "student.", 1)]
            assert torch.equal(after[name], value.lerp(student, 0.03)), name
        elif name.startswith("fake.optimizer."):
            assert torch.equal(after[name], value), "IDA leaves the moments as they are"
    update.learn_guidance(passes, learners, 2, 3.0, 1e-3)
    assert changed(after) == {"student"}
    with learners.roles.as_("teacher") as network:
        assert torch.equal(velocity(network), untouched), "nobody teaches the teacher"


def test_dm_is_zero_while_fake_and_teacher_are_one_and_ca_at_guidance_1(tmp_path: Path, tiny: Path) -> None:
    _, learners, passes = ready(plan(tmp_path, tiny, student__guidance=1.0))
    said = update.learn_to_draw(passes, learners, 0, 1.0)
    assert said["pull_dm"] == said["pull_ca"] == 0 and said["gap"] < 1e-9 and said["pull_critic"] > 0
    _, learners, passes = ready(plan(tmp_path, tiny))
    assert update.learn_to_draw(passes, learners, 0, 1.0)["pull_ca"] > 0


def test_the_student_is_met_on_the_way_it_is_served_on(tmp_path: Path, tiny: Path) -> None:
    """After the last step its clean picture is what a sampler of inference draws from the same noise."""
    config = plan(tmp_path, tiny)
    _, learners, passes = ready(config)
    assert {update.place_on_grid(config, n) for n in range(40)} == {0, 1, 2, 3}
    (one, *_) = passes.of(0)
    with torch.no_grad(), learners.roles.as_("student") as network:
        made = update.draw_student(passes, network, one, 3)
        grid = sampling.schedule(one.tokens, 4)
        served = sampling.denoise(passes.along(network, one.asked), one.noise("start"), grid)
    torch.testing.assert_close(made.x0_BNC, served, rtol=0, atol=1e-5)


def test_views_of_one_backbone_are_networks_of_their_own(tmp_path: Path, tiny: Path) -> None:
    """Without a start the teacher is the model itself; with one all three are the model with that LoRA."""
    config = plan(tmp_path, tiny)
    files, learners, _ = ready(config)
    base = load_transformer(files, torch.float32, CPU)
    choose_attention(base, CPU)
    for role in ("teacher", "student", "fake"):
        with learners.roles.as_(role) as network:
            torch.testing.assert_close(velocity(network), velocity(base), rtol=0, atol=1e-6)
    assert isinstance(learners.roles, AdapterRoles)
    with torch.no_grad():
        for name, p in learners.roles.student.named_parameters():
            if name.endswith("up_OR"):
                p.fill_(0.02)
    from train.distill.export import write_adapter

    assert isinstance(learners.student.model, AdapterSet)
    path = write_adapter(tmp_path / "rl.safetensors", config, files, learners.student.model.factors(), 1)
    with learners.roles.as_("student") as network:
        expected = velocity(network)
    assert not torch.allclose(expected, velocity(base), atol=1e-3)
    for form in FORMS:
        begun = plan(tmp_path, tiny, start_from=str(path), form=form)
        _, learners, _ = ready(begun)
        for role in ("student", "fake", "teacher"):
            with learners.roles.as_(role) as network:
                torch.testing.assert_close(velocity(network), expected, rtol=0, atol=1e-5, msg=f"{form} {role}")
    # What is written goes on the model as it was published, the start within it.
    shipped = with_adapters(config, resolve_model(str(tiny)), CPU)
    begin_with(shipped, read_start(str(path), config, files.preset.params.dit))
    torch.testing.assert_close(velocity(shipped), expected, rtol=0, atol=1e-6)
