"""Which adapter a local reasoner has: beside the language model, named in the plan, refused where it does not fit.

The language model is a file that only has to have a hash; what llama.cpp does with an adapter: test_llama_adapter.py.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from backend import presets
from backend.checkpoints.identity import known_sha256
from backend.checkpoints.layouts import REASONER_ADAPTER as NAME
from backend.checkpoints.layouts import PartFiles, Parts
from backend.checkpoints.resolve import resolve_model
from backend.disk import file_sha256
from backend.errors import CheckpointError
from backend.lora.write_gguf import write_adapter_gguf
from backend.picture.metadata import describe_expander
from backend.presets import Component
from backend.reasoner.adapter import BASE_KEY, adapter_sha256, fitting_adapter
from backend.reasoner.refine import RewritePlan, cache_key, make_plan
from backend.settings import ReasonerSettings
from backend.types import ReasonerMode

FACTORS = {"blk.0.attn_q.weight": (torch.ones(2, 8), torch.ones(8, 2))}
NANO = presets.get("nano")


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    path = tmp_path / "text_encoder.gguf"
    path.write_bytes(b"weights")
    write_adapter_gguf(tmp_path / NAME, FACTORS, {BASE_KEY: file_sha256(path)})
    return path


def test_the_plan_names_the_adapter_that_lies_beside_the_language_model(language_model: Path) -> None:
    files = resolve_model("nano")
    held = {**files.parts.held, Component.text_encoder: PartFiles(files=(language_model,))}
    files = replace(files, parts=Parts(held))
    wanted = file_sha256(language_model.with_name(NAME))

    def plan(**changes: bool) -> RewritePlan:
        return make_plan(replace(ReasonerSettings(), **changes), NANO, "nano", mode=ReasonerMode.local, files=files)

    assert plan().adapter == plan().expander().adapter == plan().data()["adapter"] == wanted
    assert f"adapter {wanted[:12]}" in describe_expander(asdict(plan().expander()))
    without = plan(adapter=False)
    assert without.adapter is None and "adapter" not in describe_expander(asdict(without.expander()))
    assert cache_key("a cat", plan(), "x") != cache_key("a cat", without, "x")
    api = ReasonerSettings(base_url="http://127.0.0.1:1/v1", model="m")
    assert make_plan(api, NANO, "nano", mode=ReasonerMode.api, files=files).adapter is None
    language_model.with_name(NAME).unlink()
    assert plan().adapter is None and adapter_sha256(()) is None


def test_an_adapter_of_other_weights_is_refused(language_model: Path) -> None:
    sha256 = adapter_sha256((language_model,)) or ""
    assert fitting_adapter(language_model, sha256) == language_model.with_name(NAME)
    with pytest.raises(CheckpointError, match="was changed while lens ran"):
        fitting_adapter(language_model, "0" * 64)
    language_model.write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match=r"made for another language model than text_encoder\.gguf") as caught:
        fitting_adapter(language_model, sha256)
    assert "LENS_REASONER__ADAPTER=false" in (caught.value.hint or "")


def test_what_is_no_adapter_is_refused(language_model: Path) -> None:
    path = language_model.with_name(NAME)
    path.write_bytes(resolve_model("nano").text_encoder[0].read_bytes()[:400_000])
    with pytest.raises(CheckpointError, match=NAME):
        fitting_adapter(language_model, known_sha256(path))
