"""The registry: rows that fit each other, names, and the numbers of the published models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backend import presets
from backend.errors import UsageError
from backend.params import ModelParams
from backend.presets import PRESETS, Component, Layout, Preset


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_rows_are_consistent(preset: Preset) -> None:
    params = preset.params
    assert PRESETS[preset.name] is preset
    assert preset.default_base in preset.bases
    assert preset.steps >= 1
    assert (preset.guidance == 1.0) == preset.distilled
    assert set(preset.licences) == set(Component)
    assert bool(preset.embedded) != bool(preset.sources)  # in the package, or somewhere to fetch it from
    assert params.dit.enc_hidden_dim == params.text.hidden_size
    assert max(params.dit.selected_layer_index) < params.text.num_hidden_layers
    assert params.dit.out_channels == params.vae.latent_channels
    assert sum(params.dit.axes_dims_rope) == params.dit.attention_head_dim
    assert all(width % params.vae.norm_num_groups == 0 for width in params.vae.block_out_channels)
    for source in preset.sources:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.repo)
        assert source.revision is None or re.fullmatch(r"[0-9a-f]{40}", source.revision)
        assert source.total is not None
        assert (source.layout is Layout.diffusers) == bool(source.patterns)
        assert all(file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in source.files)


def test_published_defaults() -> None:
    rows = {name: (row.steps, row.guidance, row.distilled) for name, row in PRESETS.items() if row.embedded is None}
    assert rows == {"lens": (20, 5.0, False), "lens-turbo": (4, 1.0, True), "lens-base": (50, 5.0, False)}
    assert all(PRESETS[name].params == ModelParams() for name in rows)


def test_the_default_needs_no_download() -> None:
    assert presets.get(presets.default_name()).embedded is not None


def test_names() -> None:
    assert presets.get(" Lens-Turbo ") is PRESETS["lens-turbo"]
    with pytest.raises(UsageError) as raised:
        presets.get("lens-turb")
    assert raised.value.hint == "did you mean 'lens-turbo'?"
    with pytest.raises(UsageError) as raised:
        presets.get("xyz")
    assert all(name in str(raised.value.hint) for name in presets.names())


def test_withdrawn_uploads_are_no_source() -> None:
    """Microsoft's own repositories went in June 2026 (facts 1.1); a default that names them fails on day one."""
    assert not any(source.repo.startswith("microsoft/") for row in PRESETS.values() for source in row.sources)


@pytest.mark.parametrize("name", [name for name, row in PRESETS.items() if row.sources])
def test_a_mark_tells_siblings_apart_by_their_published_names(name: str) -> None:
    """Their tensors are alike, so names decide: a repository and a file speak of their own model, and of no other."""
    sources = PRESETS[name].sources
    repos = [source.repo.partition("/")[2] for source in sources if source.layout is Layout.diffusers]
    files = [Path(f.path).name for source in sources for f in source.files if f.component is Component.transformer]
    for text in (*repos, *files):
        marked = [row.name for row in PRESETS.values() if row.is_marked(text)]
        assert marked == ([name] if PRESETS[name].mark else []), text
    assert not any(row.is_marked("database-v2.safetensors") for row in PRESETS.values())
