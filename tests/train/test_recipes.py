"""Recipes and their overrides, through the functions the command line calls. No network is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.errors import UsageError
from train.recipes import NANO_RECIPES, choose, describe, nano_config, pretrain_config, set_fields


@pytest.mark.parametrize("name", NANO_RECIPES)
def test_a_recipe_is_complete_and_shown_whole(name: str) -> None:
    config = nano_config(name, Path("somewhere"))
    shown = describe(config)
    assert f"vae_steps{' ' * 9}" in shown and str(config.vae_steps) in shown
    assert all(f"stages.{i}" in shown for i in range(len(config.stages)))


def test_overrides_reach_fields_and_stages() -> None:
    config = set_fields(
        nano_config("nano", Path("run")),
        ["vae_steps=1_000", "device=cuda", "compile=false", "stages.1.learning_rate=3e-4", "stages.0.steps=7"],
    )
    assert (config.vae_steps, config.device, config.compile) == (1000, "cuda", False)
    assert config.stages[1].learning_rate == 3e-4 and config.stages[0].steps == 7
    assert config.stages[2] == nano_config("nano", Path("run")).stages[2]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("vae_steps", "key=value"),
        ("vae_step=1", "unknown field 'vae_step'"),
        ("vae_steps=many", "'many' is not int"),
        ("compile=maybe", "'maybe' is not bool"),
        ("stages=1", "holds several values"),
        ("stages.9.steps=1", "numbered from 0"),
        ("params.dit.wdth=3", "unknown field 'wdth'"),
    ],
)
def test_a_wrong_override_says_why(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        set_fields(nano_config("nano", Path("run")), [setting])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("micro_batch=0", "micro_batch=0: at least 1"),
        ("dropout=1.1", "dropout=1.1: from 0 to 1"),
        ("ema_decay=1", "ema_decay=1: from 0 to below 1"),
        ("betas=0.9,1", "betas=1: from 0 to below 1"),
        ("clip=nan", "clip=nan: from 1e-09"),
        ("prefetch=-1", "prefetch=-1: at least 0"),
        ("stages.0.groups=0", "groups=0: at least 1"),
        ("stages.0.mix.1.batch=0", "batch=0: at least 1"),
        ("stages.0.learning_rate=-1", "learning_rate=-1: from 0 to 1"),
        ("machine.mfu=0", "mfu=0: from 0.001 to 1"),
    ],
)
def test_a_number_that_means_nothing_is_refused(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        set_fields(pretrain_config("paper-mixed", Path("run")), [setting])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("log_every=0", "log_every=0: at least 1"),
        ("passes=0", "passes=0: at least 1"),
        ("encode_batch=0", "encode_batch=0: at least 1"),
        ("vae_batch=0", "vae_batch=0: at least 1"),
        ("vae_whole_batch=0", "vae_whole_batch=0: at least 1"),
        ("language_tokens=0", "language_tokens=0: at least 1"),
        ("language_steps=-1", "language_steps=-1: at least 0"),
        ("vae_learning_rate=0", "vae_learning_rate=0: from 1e-09"),
        ("workers=-1", "workers=-1: at least 0"),
        ("align=-1", "align=-1: from 0"),
        ("stages.2.captions=0,0,0", "captions are all 0"),
        ("device=foo", "device=foo: no such device"),
    ],
)
def test_lens_nano_refuses_at_once_what_would_fail_hours_later(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        set_fields(nano_config("nano", Path("run")), [setting])


def test_a_work_folder_may_be_named_by_what_was_packed_in_it() -> None:
    for settings, data in (([], Path("w/pack")), (["data=w/pack"], None)):
        config = choose("paper-512", Path("run"), [*settings, "held_out=w2/pack"], data=data)
        assert (config.data, config.held_out) == (Path("w"), Path("w2"))
    assert choose("paper-512", Path("run"), [], data=Path("w")).held_out is None


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        nano_config("paper", Path("run"))
    assert "nano-smoke" in (caught.value.hint or "")
