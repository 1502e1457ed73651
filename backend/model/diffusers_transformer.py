"""The transformer as diffusers' tools know a model: `from_pretrained`, `save_pretrained`, gradient checkpointing.

Apart from the network itself: importing diffusers brings transformers and bitsandbytes along, 6 of the 9 processor
seconds that importing the pipeline took, and nothing that makes a picture needs them.
"""

from __future__ import annotations

from typing import ClassVar

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from backend.model import transformer


class LensTransformer2DModel(transformer.LensTransformer2DModel, ModelMixin, ConfigMixin):
    """Under the class name of the published config.json."""

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LensBlock"]

    __init__ = register_to_config(transformer.LensTransformer2DModel.__init__)
