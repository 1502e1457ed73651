"""The one registry: every model a person may name, its defaults, its sources and its licences.

Every accepted name, default, download and licence line derives from the rows at the end of this file; adding a model
is adding a row. Microsoft withdrew its own uploads in June 2026, so each published model has an ordered list of
sources. A revision or SHA-256 is written down only where it is known from a publication; for the others the hub's own
commit and hashes are recorded when the files are pulled.

Light ring: standard library only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MappingProxyType

from backend.errors import UsageError
from backend.params import DiTParams, ModelParams, TemplateParams, TextEncoderParams, VAEParams
from backend.types import ReasonerMode


class Component(StrEnum):
    """The parts of a model, in the order in which they are listed."""

    transformer = "transformer"
    text_encoder = "text_encoder"
    vae = "vae"
    tokenizer = "tokenizer"


class Layout(StrEnum):
    """How a set of files is arranged."""

    diffusers = "diffusers"  # folders per component with config.json, sharded safetensors: the published layout
    single_files = "single_files"  # diffusion_models/, text_encoders/, vae/: as Comfy-Org publishes them
    embedded = "embedded"  # transformer.gguf, text_encoder.gguf, vae.safetensors in one folder: Lens-Nano's


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source. `size` in bytes, `about` true where only a rounded size is published."""

    path: str  # inside the repository
    component: Component
    size: int | None = None  # None: not published; asked for before the first byte
    about: bool = False
    sha256: str | None = None  # None: not published; the hub's own hash is checked and recorded


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository that holds a model, in the order of preference within `Preset.sources`."""

    repo: str  # owner/name on the hub
    layout: Layout
    revision: str | None = None  # commit; None: the newest, recorded when pulled
    files: tuple[SourceFile, ...] = ()  # what is known file by file
    patterns: tuple[str, ...] = ()  # what to fetch, for layouts whose shard names vary; empty: exactly `files`
    size: int | None = None  # bytes to download, about; None: the sum of `files`
    weights: str = "BF16"  # how the transformer's linears lie in it: BF16, F32, or a packing of `packing.schemes`
    note: str = ""  # provenance, as far as it is known

    @property
    def total(self) -> int | None:
        """Bytes to download, about; None where unknown."""
        if self.size is not None:
            return self.size
        sizes = [file.size for file in self.files]
        return None if not sizes or None in sizes else sum(size or 0 for size in sizes)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """File names inside `backend.paths.nano_dir()`; the tokenizer lies in the text encoder's file."""

    transformer: str = "transformer.gguf"
    text_encoder: str = "text_encoder.gguf"
    vae: str = "vae.safetensors"

    def names(self) -> dict[Component, str]:
        return {Component(field.name): getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class OwnAdapter:
    """A LoRA that is part of an embedded model: its weights are those of the base with this added."""

    file: str  # inside `backend.paths.nano_dir()`
    adjustable: bool = False  # `--rl-strength` weighs it; else it acts whole


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model and its defaults."""

    name: str  # what a person types
    title: str  # one line for lists
    params: ModelParams
    steps: int  # sampler steps
    guidance: float  # 1.0: no unconditional branch
    distilled: bool  # trained for few steps without guidance; guidance and a negative prompt do nothing good
    bases: tuple[int, ...]  # trained base resolutions in pixels
    default_base: int  # pixels
    licences: Mapping[Component, str]
    reasoner_default: ReasonerMode = ReasonerMode.off  # what `--reasoner auto` means without an endpoint: off or local
    reasoner_prompt: str = "general"  # system prompt of the model's own language model
    reasoner_temperature: float = 0.7  # of the model's own language model; 0.7 as published
    embedded: Embedded | None = None  # None: must be pulled or given as a path
    adapters: tuple[OwnAdapter, ...] = ()  # on the embedded transformer, added up
    sources: tuple[HubSource, ...] = ()  # in order of preference
    packed: tuple[HubSource, ...] = ()  # smaller files of rounded weights: fetched only where they are asked for
    # Told from its siblings, whose tensors are alike, by the names of files and folders: a regular expression that
    # finds something in its own names, in any case, and nothing in theirs. "": it has no mark.
    mark: str = ""

    def is_marked(self, text: str) -> bool:
        """Whether the name of a file or folder speaks of this model."""
        return bool(self.mark) and re.search(self.mark, text, re.IGNORECASE) is not None

    def source_of(self, repo: str, names: Collection[str]) -> HubSource | None:
        """The source that files of these names in a repository came from; None: none that the registry knows."""
        known = (source for source in (*self.sources, *self.packed) if source.repo == repo)
        plain = {name.removeprefix("split_files/") for name in names}
        return next((s for s in known if s.patterns or {file.path for file in s.files} <= plain), None)


# Parameters ----------------------------------------------------------------------------------------------------------

LENS = ModelParams()  # the published 4.1B; all three published models share it

NANO = ModelParams(
    dit=DiTParams(
        num_layers=10,
        num_attention_heads=4,
        enc_hidden_dim=192,
        selected_layer_index=(1, 3, 5, 7),
        mlp_hidden_dim=672,
    ),
    vae=VAEParams(
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
    ),
    text=TextEncoderParams(
        vocab_size=1536,
        hidden_size=192,
        num_hidden_layers=8,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=128,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=128,
        rope_truncate=True,  # llama.cpp always rounds the YaRN range; so does this network, and both agree
        # Few words, so that a small network does not spend itself on them; no thinking sentence.
        template=TemplateParams(
            identity="You are Lens.", instruction="Describe the image.", thinking="", prefix_tokens=64
        ),
    ),
)

# Sources -------------------------------------------------------------------------------------------------------------

DIFFUSERS_FILES = (  # of the published layout; `*` stays inside one folder
    "model_index.json",
    "scheduler/*.json",
    "transformer/*.json",
    "transformer/*.safetensors",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "tokenizer/*",
    "vae/*.json",
    "vae/*.safetensors",
)
_TOKENIZER = SourceFile(  # gpt-oss's own; the same in every mirror
    path="tokenizer/tokenizer.json",
    component=Component.tokenizer,
    size=27_900_000,
    about=True,
    sha256="0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
)


def _mirror(repo: str, size: int, note: str, revision: str | None = None, *, weights: str = "BF16") -> HubSource:
    """A repository in the published diffusers layout."""
    return HubSource(
        repo=repo,
        layout=Layout.diffusers,
        revision=revision,
        files=(_TOKENIZER,),
        patterns=DIFFUSERS_FILES,
        size=size,
        weights=weights,
        note=note,
    )


def _comfy(transformer: str, sha256: str | None, *, size: int = 8_210_000_000, weights: str = "BF16") -> HubSource:
    """Comfy-Org/Lens: one transformer, the shared encoder with its tokenizer inside, the shared autoencoder."""
    return HubSource(
        repo="Comfy-Org/Lens",
        layout=Layout.single_files,
        files=(
            SourceFile(
                path=f"diffusion_models/{transformer}",
                component=Component.transformer,
                size=size,
                about=True,
                sha256=sha256,
            ),
            SourceFile(
                path="text_encoders/gpt_oss_20b_nvfp4.safetensors",
                component=Component.text_encoder,
                size=13_240_000_000,
                about=True,
                sha256="103d7759c720627e5ffdcb0d885595695085dad4201fa6a522a84d4b86335ca0",
            ),
            # The hash published for this name belongs to another repository (flux2-dev), so it is not required here.
            SourceFile(path="vae/flux2-vae.safetensors", component=Component.vae, size=336_000_000, about=True),
        ),
        weights=weights,
        note=f"single files for ComfyUI: {'bfloat16' if weights == 'BF16' else weights.upper()} transformer, NVFP4 "
        "encoder without output head (no local reasoner)",
    )


_BF16 = "bfloat16 transformer from Comfy-Org, stock gpt-oss-20b (MXFP4) and FLUX.2 autoencoder"
_DUPLICATE = "duplicate of Microsoft's withdrawn upload, made on the hub: float32 transformer"
_ARCHIVE = "archived copy of Microsoft's withdrawn upload, said to be unmodified: float32 transformer"
_FULL = 30_530_000_000  # bytes of a complete copy with the float32 transformer
_MXFP8 = 5_570_000_000  # bytes of a transformer whose blocks are MXFP8 and whose rest is bfloat16

_LENS_LICENCES = MappingProxyType(
    {
        Component.transformer: "MIT (Copyright 2026 Microsoft)",
        Component.text_encoder: "Apache-2.0 (OpenAI gpt-oss-20b)",
        Component.vae: "Apache-2.0 (Black Forest Labs FLUX.2 autoencoder)",
        Component.tokenizer: "Apache-2.0 (OpenAI gpt-oss-20b)",
    }
)
_NANO_LICENCES = MappingProxyType(
    dict.fromkeys(Component, "MIT (trained from nothing by this project on pictures that it draws)")
)

# Rows ----------------------------------------------------------------------------------------------------------------

_NANO_BASE = Preset(
    name="nano-base",
    title="Lens-Nano before reward tuning: the start for training",
    params=NANO,
    steps=20,
    guidance=3.0,
    distilled=False,
    bases=(128, 192, 256, 384),
    default_base=256,
    licences=_NANO_LICENCES,
    reasoner_default=ReasonerMode.off,  # what local rewrites is drawn worse; it refuses what is outside of its world
    reasoner_prompt="nano",
    reasoner_temperature=0.0,  # a small model's less likely words are its mistakes
    embedded=Embedded(),
)
_NANO = replace(
    _NANO_BASE,
    name="nano",
    title="Lens-Nano: small, inside the package, needs no download",
    adapters=(OwnAdapter(file="rl.safetensors", adjustable=True),),
)
_NANO_TURBO = replace(
    _NANO_BASE,
    name="nano-turbo",
    title="Lens-Nano, distilled: four steps, no guidance",
    steps=4,
    guidance=1.0,
    distilled=True,
    # The student was trained on top of what tunes its teacher, which is therefore never weighed here.
    adapters=(OwnAdapter(file="rl.safetensors"), OwnAdapter(file="turbo.safetensors")),
)
_LENS = Preset(
    name="lens",
    title="Lens 4.1B, tuned with rewards: the best pictures",
    params=LENS,
    steps=20,
    guidance=5.0,
    distilled=False,
    bases=(512, 768, 1024, 1440),
    default_base=1024,
    licences=_LENS_LICENCES,
    sources=(
        _mirror("SceneWorks/Lens", 22_334_041_829, _BF16, "5c5521d4417a3cae55816929ece69319d1e7712a"),
        _comfy("lens_bf16.safetensors", None),
        _mirror("Jinstudio/Lens", _FULL, _DUPLICATE, weights="F32"),
        _mirror("YuCollection/Lens-Diffusers", _FULL, _ARCHIVE, weights="F32"),
    ),
    packed=(_comfy("lens_mxfp8.safetensors", None, size=_MXFP8, weights="mxfp8"),),
)
_LENS_TURBO = replace(
    _LENS,
    name="lens-turbo",
    title="Lens-Turbo 4.1B, distilled: four steps, no guidance",
    steps=4,
    guidance=1.0,
    distilled=True,
    mark="turbo",
    sources=(
        _mirror("SceneWorks/Lens-Turbo", 22_334_000_000, _BF16),
        _comfy(
            "lens_turbo_bf16.safetensors",
            "a9fc0e27261d9199d4e46e573a6b247f3cd94beec0241e61ae9eaee5ae9ef7c9",
        ),
        _mirror("Jinstudio/Lens-Turbo", _FULL, _DUPLICATE, weights="F32"),
        _mirror("YuCollection/Lens-Turbo-Diffusers", _FULL, _ARCHIVE, weights="F32"),
    ),
    packed=(_comfy("lens_turbo_mxfp8.safetensors", None, size=_MXFP8, weights="mxfp8"),),
)
_LENS_BASE = replace(
    _LENS,
    name="lens-base",
    title="Lens-Base 4.1B, before reward tuning: the start for fine-tuning",
    steps=50,
    guidance=5.0,
    mark=r"(^|[-_. ])base($|[-_. ])",  # a word of its own: "database" is none
    sources=(
        _mirror("Jinstudio/Lens-Base", _FULL, _DUPLICATE, weights="F32"),
        _mirror("YuCollection/Lens-Base-Diffusers", _FULL, _ARCHIVE, weights="F32"),
    ),
    packed=(),  # nobody published one
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {preset.name: preset for preset in (_NANO, _NANO_TURBO, _NANO_BASE, _LENS, _LENS_TURBO, _LENS_BASE)}
)
_DEFAULT = "nano"  # the one that works with nothing downloaded


def names() -> tuple[str, ...]:
    """Every name a person may type, in the order of the list."""
    return tuple(PRESETS)


def default_name() -> str:
    return _DEFAULT


def get(name: str) -> Preset:
    """The preset called `name`; case and surrounding blanks do not matter. Raises UsageError with the nearest name."""
    found = PRESETS.get(name.strip().lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.strip().lower(), PRESETS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(PRESETS)}"
    raise UsageError(f"no model is called {name!r}", hint=hint)
