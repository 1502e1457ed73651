"""The source of batches that a pre-training names, with the frozen networks it needs, and the usual previews."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from backend.errors import UsageError
from backend.model.transformer import LensTransformer2DModel
from backend.params import ModelParams
from backend.presets import PRESETS, get
from train.batches.encoders import Frozen
from train.batches.random import RandomSource
from train.config import PretrainConfig
from train.run.batch import BatchSource

if TYPE_CHECKING:
    from PIL.Image import Image

Preview = Callable[[LensTransformer2DModel, int], "Image"]  # a network and a base -> a sheet of fixed prompts and seeds


def open_source(
    config: PretrainConfig, frozen: Frozen | None, device: torch.device, say: Callable[[str], None]
) -> tuple[BatchSource, Frozen | None]:
    """The config's data; and Lens's own frozen networks, where both are used: previews are drawn with them.

    `frozen`: networks that are in memory; None: those that the config names. Raises LensError.
    """
    if config.data.source == "random":
        return RandomSource(config, device), None
    from train.batches import encoders

    opened = None
    if config.data.source == "packed":
        from train.batches.open_packs import open_packed

        opened = open_packed(config.data, config.stages, config.seed)
    if frozen is not None:
        ready = encoders.of_frozen(config.params, config.template, frozen, device)
    else:
        ready = encoders.load(config.frozen, config.params, config.template, device)
    if opened is not None:
        from train.batches.packed import PackedSource

        return PackedSource(config, opened, ready, device, say), ready.frozen
    if ready.frozen is None:
        raise UsageError(
            "drawn scenes are encoded by Lens's own networks", hint="leave out frozen.vae and frozen.text_encoder"
        )
    from train.batches.scenes import Scenes, SceneSource

    assert config.data.source == "scenes"
    scenes = Scenes(
        config.data, config.seed, config.machine.workers, config.template, config.params.selected_layer_index, device
    )
    return SceneSource(scenes, ready.frozen, ready.networks() if ready.networks else None), ready.frozen


def usual_preview(config: PretrainConfig, frozen: Frozen) -> Preview:
    """The sheet of `train.batches.preview`, with the guidance of the model whose networks are used."""
    from train.batches.preview import sheet

    params = ModelParams(dit=config.params, text=replace(frozen.encoder.params, template=config.template))
    used = PRESETS.get(config.frozen.encoders or "", get("lens"))
    return lambda model, base: sheet(model, frozen, params, side=base, guidance=used.guidance)
