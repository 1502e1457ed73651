"""Recipes and their overrides, through the functions the command line calls. No network is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.errors import UsageError
from train.config import PackedData
from train.distill import config as distill
from train.overrides import as_json, settings_of
from train.recipes import choose, nano_config, pretrain_config, set_fields
from train.rl import config as rl


@pytest.mark.parametrize(
    "config",
    [
        nano_config("nano", Path("somewhere")),
        pretrain_config("paper-mixed", Path("somewhere")),
        rl.choose("paper", None, []),
        distill.choose("nano", None, []),
    ],
    ids=lambda config: type(config).__name__,
)
def test_each_field_is_shown_as_it_is_set(config: Any) -> None:
    """`set_fields` is the judge: all that is listed, given back to it, changes nothing and misses nothing."""
    rows = settings_of(config)
    kept = set_fields(config, [f"{key}={value}" for key, value in rows if value != "" or key == "judge.model"])
    assert kept == config and len(rows) > 50
    assert {key for key, _ in rows} == set(_leaves(as_json(config), ""))


def _leaves(value: Any, front: str) -> Iterator[str]:
    """The key of every number, text, list of such and null of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [(f"{front}{key}", part) for key, part in parts]
    if isinstance(value, dict) or (inner and isinstance(inner[0][1], dict)):
        for key, part in inner:
            yield from _leaves(part, f"{key}.")
    else:
        yield front[:-1]


def test_overrides_reach_fields_and_stages() -> None:
    config = set_fields(
        nano_config("nano", Path("run")),
        [
            "vae.steps=1_000",
            "machine.device=cuda",
            "machine.compile=false",
            "stages.1.learning_rate=3e-4",
            "stages.0.steps=7",
        ],
    )
    assert (config.vae.steps, config.machine.device, config.machine.compile) == (1000, "cuda", False)
    assert config.stages[1].learning_rate == 3e-4 and config.stages[0].steps == 7
    assert config.stages[2] == nano_config("nano", Path("run")).stages[2]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("vae.steps", "key=value"),
        ("vae.step=1", "unknown field 'step'"),
        ("vae.steps=many", "'many' is not a whole number"),
        ("machine.compile=maybe", "'maybe' is not true or false"),
        ("stages=1", r"holds several values; .* stages\.0\.base"),
        ("optim=1", r"holds several values; .* optim\.betas"),
        ("stages.9.steps=1", "numbered from 0"),
        ("stages.².steps=1", "numbered from 0"),
        ("stages." + "9" * 5000 + ".steps=1", "numbered from 0"),
        ("params.dit.wdth=3", "unknown field 'wdth'"),
    ],
)
def test_a_wrong_override_says_why(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        set_fields(nano_config("nano", Path("run")), [setting])


def test_a_nested_config_may_be_none() -> None:
    config = choose("nano", Path("run"), ["data.mixes.1.layouts=none", "data.mixes.0.layouts.sign=0.5"])
    assert config.data.source == "scenes" and config.data.mixes[1].layouts is None
    assert config.data.mixes[0].layouts is not None and config.data.mixes[0].layouts.sign == 0.5


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("clip=1", "optim.clip"),
        ("optim.clp=1", "optim.clip"),
        ("optim.clip.x=1", "optim.clip"),
        ("machine.mfu=0.4", "hardware.mfu"),
        ("learning_rate=1", "stages.0.learning_rate or stages.1.learning_rate or stages.2.learning_rate"),
        ("data.mixes.1.layouts.sgin=1", "data.mixes.1.layouts.sign"),
        ("saving.validate=1", "saving.validate_every"),
        ("optim.wd=1", "optim.weight_decay"),
        ("machine.batch_size=1", "stages.0.batch or stages.1.batch or stages.2.batch"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(setting: str, meant: str) -> None:
    with pytest.raises(UsageError, match="--set") as caught:
        choose("nano", Path("run"), [setting])
    assert caught.value.hint == f"did you mean {meant}?"
    with pytest.raises(UsageError) as caught:
        choose("nano", Path("run"), ["zzz=1"])
    assert (caught.value.hint or "").startswith("fields: run_dir, params,")
    with pytest.raises(UsageError) as caught:
        rl.choose("nano", None, ["nft.kl=1"])
    assert caught.value.hint == "did you mean nft.kl_weight?"
    with pytest.raises(UsageError) as caught:
        rl.choose("nano", None, ["reward.zzz=1"])
    assert caught.value.hint == "reward has overall_weight, all_hold, least_answered"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("machine.micro_batch=0", "micro_batch=0: at least 1"),
        ("noise.dropout=1.1", "dropout=1.1: from 0 to 1"),
        ("optim.ema_decay=1", "ema_decay=1: from 0 to below 1"),
        ("optim.betas=0.9,1", "betas=1: from 0 to below 1"),
        ("optim.clip=nan", "clip=nan: from 1e-09"),
        ("machine.prefetch=-1", "prefetch=-1: at least 0"),
        ("stages.0.groups=0", "groups=0: at least 1"),
        ("stages.0.mix.1.batch=0", "batch=0: at least 1"),
        ("stages.0.learning_rate=-1", "learning_rate=-1: from 0 to 1"),
        ("hardware.mfu=0", "mfu=0: from 0.001 to 1"),
    ],
)
def test_a_number_that_means_nothing_is_refused(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        set_fields(pretrain_config("paper-mixed", Path("run")), [setting])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("saving.log_every=0", "log_every=0: at least 1"),
        ("data.passes=0", "passes=0: at least 1"),
        ("data.encode_batch=0", "encode_batch=0: at least 1"),
        ("vae.batch=0", "batch=0: at least 1"),
        ("vae.whole_batch=0", "whole_batch=0: at least 1"),
        ("language.tokens=0", "tokens=0: at least 1"),
        ("language.steps=-1", "steps=-1: at least 0"),
        ("vae.learning_rate=0", "learning_rate=0: from 1e-09"),
        ("machine.workers=-1", "workers=-1: at least 0"),
        ("data.align.weight=-1", "weight=-1: from 0"),
        ("data.mixes.2.captions=0,0,0", "captions are all 0"),
        ("machine.device=foo", "device=foo: no such device"),
    ],
)
def test_lens_nano_refuses_at_once_what_would_fail_hours_later(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        set_fields(nano_config("nano", Path("run")), [setting])


def test_a_work_folder_may_be_named_by_what_was_packed_in_it() -> None:
    for settings, data in (([], Path("w/pack")), (["data.work=w/pack"], None)):
        config = choose("paper-512", Path("run"), [*settings, "data.held_out=w2/pack"], data=data)
        assert config.data == PackedData(work=Path("w"), held_out=Path("w2"))
    assert choose("nano", Path("run"), [], data=Path("w")).data == PackedData(work=Path("w"))


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        nano_config("paper", Path("run"))
    assert "nano-smoke" in (caught.value.hint or "")
