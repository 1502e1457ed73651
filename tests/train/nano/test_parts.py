"""Lens-Nano's autoencoder and language model: stopped and resumed, they end where an uninterrupted training ends.

Why it can be trusted: the signal is a real one, sent in the middle of a step, and every weight
must equal the uninterrupted run's bit for bit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backend.errors import CancelledError, NumericsError
from backend.params import TextEncoderParams, VAEParams
from tests.train.small_language import small_language
from train.nano import language, vae
from train.run import checkpoints

STEPS, STOP = 5, 3


def autoencoder(run_dir: Path) -> vae.VAEConfig:
    params = VAEParams(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    )
    return vae.VAEConfig(
        params=params, run_dir=run_dir, steps=STEPS, batch=2, crop=32, warmup=2, noise_warmup=2, workers=0
    )


def language_model(run_dir: Path, params: TextEncoderParams) -> language.LanguageConfig:
    return language.LanguageConfig(
        params=params, run_dir=run_dir, steps=STEPS, tokens_per_step=1024, warmup=2, workers=0, compile=False
    )


def interrupted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, train: Callable[[], nn.Module]) -> nn.Module:
    """Ctrl-C while step STOP is computed, then the same call again."""
    usual, calls = getattr(module, name), []

    def computed(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == STOP:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(*args, **options)

    monkeypatch.setattr(module, name, computed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CancelledError, match=f"stopped after step {STOP} of {STEPS}; the state is saved"):
        train()
    assert signal.getsignal(signal.SIGINT) is before
    return train()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "measure_latents", lambda *_: None)  # 1,024 pictures after the last step, drawn by seed
    whole = autoencoder(tmp_path / "whole")
    cut = replace(whole, run_dir=tmp_path / "cut")
    theirs = vae.run(whole).state_dict()
    assert same(interrupted(monkeypatch, vae, "_step_loss", lambda: vae.run(cut)).state_dict(), theirs)
    assert [path.name for path in checkpoints.folders(cut.run_dir)] == [f"step-{step:08d}" for step in (STOP, STEPS)]


@pytest.mark.parametrize("loss", [True, False])
def test_an_autoencoder_that_diverges_stops_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: bool
) -> None:
    """Whether the loss is no number or only its gradient; and from its last checkpoint it goes on."""
    monkeypatch.setattr(vae, "measure_latents", lambda *_: None)
    config = replace(autoencoder(tmp_path), save_every=2)
    usual, calls = vae._step_loss, []

    def computed(*args: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        value, mean = usual(*args)
        if len(calls) == 4:
            value = value * torch.nan if loss else value + (0 * mean).abs().sqrt().sum()  # whose slope at 0 is endless
        return value, mean

    monkeypatch.setattr(vae, "_step_loss", computed)
    with pytest.raises(NumericsError, match=r"^step 3: .*nan.*, step-00000002, is untouched$") as caught:
        vae.run(config)
    assert "--set vae.learning_rate=" in (caught.value.hint or "")
    trained = vae.run(replace(config, learning_rate=1e-4)).state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in trained.values())


def test_a_language_model_that_diverges_stops_before_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, params = small_language()
    config = replace(language_model(tmp_path, params), save_every=2)
    usual, calls = torch.nn.functional.cross_entropy, []

    def computed(*args: Any) -> Tensor:
        calls.append(1)
        return usual(*args) * (torch.inf if len(calls) == 4 else 1.0)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", computed)
    with pytest.raises(NumericsError, match=r"^step 3: loss inf.*, step-00000002, is untouched$") as caught:
        language.run(config, tokenizer)
    assert "--set language.learning_rate=" in (caught.value.hint or "")
    trained = language.run(replace(config, learning_rate=1e-4), tokenizer).state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in trained.values())


def test_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, params = small_language()
    whole = language_model(tmp_path / "whole", params)
    cut = replace(whole, run_dir=tmp_path / "cut")
    theirs = language.run(whole, tokenizer).state_dict()
    ours = interrupted(monkeypatch, language, "make_batch", lambda: language.run(cut, tokenizer))
    assert same(ours.state_dict(), theirs)
