"""Which cards a model runs on, before it is fetched: against sums made elsewhere, and against headers of real files.

The seconds are compared with a roofline that was worked out by hand for three cards at 1024 x 1024 before this module
was written (products and attention of Turbo's four steps, and the autoencoder's part): another count of the same work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from backend import presets
from backend.checkpoints.packing_plan import plan_quant
from backend.checkpoints.resolve import resolve_model
from backend.memory import cards
from backend.memory.cards import CARDS, Drawing, encoder_bytes, model_bytes, outlooks, picture_seconds
from backend.memory.footprint import GB
from backend.memory.machine import describe
from backend.presets import LENS, PRESETS, HubSource, Layout
from backend.requests import build_request
from backend.settings import Settings
from backend.types import DType
from backend.wish import Wish
from tests.backend import tiny_weights as tiny

TURBO = Drawing(params=LENS, width=1024, height=1024, steps=4, guided=False)
LENS_20 = replace(TURBO, steps=20, guided=True)
BF16 = PRESETS["lens-turbo"].sources[0]
MXFP8 = PRESETS["lens-turbo"].packed[0]


def found(name: str, drawing: Drawing = TURBO, source: HubSource = BF16) -> cards.Outlook:
    return next(one for one in outlooks(drawing, source) if one.card.name == name)


@pytest.mark.parametrize(
    ("card", "turbo", "guided"), [("8 GB", 2.8 + 0.70, 27 + 0.7), ("12 GB", 3.3 + 0.81, 32 + 0.8), ("24 GB", 1.5, 12.2)]
)
def test_seconds_agree_with_a_roofline_by_hand(card: str, turbo: float, guided: float) -> None:
    """By hand nothing but products was counted; here everything else comes on top: at most a fifth."""
    for drawing, least in ((TURBO, turbo), (LENS_20, guided)):
        seconds = found(card, drawing).seconds
        assert seconds is not None and 0.98 * least <= seconds <= 1.2 * least


def test_two_measured_cores() -> None:
    """200 s for Turbo's four passes and 18.9 s for the decoder, on two cores: a quarter of what eight are taken for."""
    cpu = next(card for card in CARDS if card.device == "cpu")
    one = found("none")
    assert one.plan is not None
    model = model_bytes(TURBO, BF16, "cpu")
    # Its convolutions ran faster than the share that is assumed of a card.
    assert picture_seconds(cpu, model, one.plan) * 4 == pytest.approx(200 + 18.9, rel=0.2)


def test_what_lies_where() -> None:
    places = {one.card.name: one.where for one in outlooks(TURBO, BF16)}
    assert places["6 GB"] == "in memory, streamed"  # 5.5 GB of blocks do not lie on it
    assert {places[name] for name in ("8 GB", "12 GB", "16 GB", "24 GB")} == {"on the card"}
    packed = found("6 GB", source=MXFP8)
    assert packed.where == "on the card" and packed.plan is not None and packed.plan.blocks == pytest.approx(
        2.8 * GB, rel=0.02
    )  # fmt: skip
    tiny_card = replace(CARDS[0], name="1 GB", memory=1.0)
    one = cards._outlook(tiny_card, TURBO, BF16)  # pyright: ignore[reportPrivateUsage]
    assert one.plan is None and one.seconds is None and "leanest plan" in str(one.reason)


def test_the_encoder_reads_what_the_published_file_holds() -> None:
    """10.15 GB of experts and 1.27 of attention, from the shards' own headers; embedding and head are not read."""
    assert encoder_bytes(LENS.text) == pytest.approx(11.42e9, rel=0.01)


def test_the_same_as_headers_say(tmp_path: Path) -> None:
    """A model of float32 files: what the registry's word for them gives is what `describe` reads from them."""
    files = resolve_model(str(tiny.write_diffusers(tmp_path / "tiny")))
    resolved = build_request(Wish(prompt="a fish", model=str(tmp_path / "tiny")), Settings(), lambda text: None)
    request = resolved.request
    source = HubSource(repo="a/b", layout=Layout.diffusers, weights="F32")
    for device, dtype, itemsize in (("cpu", DType.float32, 4), ("cuda", DType.bfloat16, 2)):
        quant = plan_quant(files, request.quant, itemsize=itemsize, on_cpu=device == "cpu")
        drawing = cards.drawing_of(request, files.preset.params)
        assert model_bytes(drawing, source, device) == describe(request, files, dtype, quant)


def test_a_source_is_told_by_the_names_of_its_files() -> None:
    """Two sets of files of one repository: what was pulled decides."""
    preset = presets.get("lens-turbo")
    (plain,) = (source for source in preset.sources if source.repo == "Comfy-Org/Lens")
    for source in (plain, *preset.packed):
        names = [f"split_files/{file.path}" for file in source.files]
        assert preset.source_of("Comfy-Org/Lens", names) is source
    assert preset.source_of("Comfy-Org/Lens", ["vae/flux2-vae.safetensors"]) is None
