"""The data that travels from the command line to the picture: the choices, the complete request, who made it.

Light ring: standard library only. A `GenerationRequest` is complete: nothing in it is decided later, so what is saved
beside a picture is exactly what ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class DType(StrEnum):
    """Arithmetic of transformer and encoder. float16 is absent on purpose: activations reach 3e7."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Encoder(StrEnum):
    """What computes the text features. auto is exact, whatever the format of the weights: a choice that depended on
    what else happens to be open would make two pictures of one request."""

    auto = "auto"
    exact = "exact"  # torch, one layer at a time
    llama = "llama"  # llama.cpp; near-exact, since it rounds gpt-oss's YaRN range. GGUF only


class Quant(StrEnum):
    """How the big linears of the transformer's blocks lie in memory. auto, none and a GGUF's own packing give the same
    numbers; the others are approximations, and so is gguf for a file that is none. `backend.packing.schemes` has a row
    for each."""

    auto = "auto"  # as the file is, where that saves memory worth the decoding
    none = "none"  # in the network's dtype
    fp8 = "fp8"
    int8 = "int8"
    nf4 = "nf4"
    gguf = "gguf"  # a GGUF file's own types; any other file as Q8_0


class Sampler(StrEnum):
    """What solves the steps from noise to data; see `backend.sampling.SAMPLERS`."""

    euler = "euler"  # first order
    dpmpp_2m = "dpmpp_2m"  # DPM-Solver++(2M): second order, from the step before as well


class Preview(StrEnum):
    """What is shown of a picture while it is drawn."""

    off = "off"
    proj = "proj"  # the estimate's latent as colours, by one matrix: small, and nearly free
    vae = "vae"  # the estimate decoded: takes as long as the decoding of a picture, at every step


class QuantTarget(StrEnum):
    """What `lens models quantize` writes; `backend.packing.schemes` says into which kind of file."""

    q8_0 = "q8_0"
    q6_k = "q6_k"
    q5_k = "q5_k"
    q4_k = "q4_k"
    nf4 = "nf4"
    int8 = "int8"
    fp8 = "fp8"
    mxfp8 = "mxfp8"


class ImageFormat(StrEnum):
    """File formats a picture is saved in."""

    png = "png"
    jpeg = "jpeg"
    webp = "webp"


class ReasonerMode(StrEnum):
    """Who rewrites a request before it is drawn."""

    auto = "auto"  # a configured endpoint, else the model's own default
    off = "off"  # nobody: the request is drawn as it stands, and nothing is refused
    local = "local"  # the model's own language model, on this machine
    api = "api"  # an OpenAI-compatible endpoint


class LoraMode(StrEnum):
    """How a LoRA meets the weights."""

    auto = "auto"  # fused, but live where it is low-rank and the weights beneath it are quantised
    fused = "fused"  # added to the weights in float32 while they are read
    live = "live"  # low-rank ones in a path of their own beside the linears of the blocks; the rest fused


class Fit(StrEnum):
    """How a picture that another begins from meets a size that is not its own."""

    scale = "scale"  # made to cover it; what is over is cut away
    extend = "extend"  # left as it is; what is around it is drawn


class Effort(StrEnum):
    """How long a language model thinks before it answers."""

    low = "low"
    medium = "medium"
    high = "high"


class DrawingEngine(StrEnum):
    """Who draws for a server."""

    local = "local"  # one process on this machine
    ray = "ray"  # replicas of a Ray Serve deployment, on any number of machines


class Phase(StrEnum):
    """The phases of one generation, in order; `fold` and `load_vae` are parts of `load_transformer`."""

    rewrite = "rewrite"
    load_encoder = "load encoder"
    encode = "encode"  # pyright: ignore[reportAssignmentType]  hides str.encode, which nobody calls on a phase
    load_transformer = "load transformer"  # with all that a picture needs beside the text encoder
    fold = "fold"  # the modulation of the schedule
    load_vae = "load vae"
    denoise = "denoise"
    decode = "decode"


@dataclass(frozen=True, kw_only=True)
class Expander:
    """Who rewrote a request, and how: what a record says about it. Never an address or a key."""

    kind: str  # "local" or "api"
    model: str  # registry name or file's base name; the model's name at the endpoint
    system_prompt: str  # its name, or its file's stem
    instructions_sha256: str  # of the whole text that was sent as instructions, policy included
    effort: str  # low, medium or high
    temperature: float | None  # None: the endpoint's own
    seed: int | None  # None: the endpoint takes none
    adapter: str | None = None  # SHA-256 of the updates of the local model's weights; None: the model as it is


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """One LoRA and how strongly it acts."""

    path: str  # absolute path of the file; in a request read back from a picture, its base name
    sha256: str  # of the file; see `backend.lora.names.lora_sha256`
    scale: float = 1.0  # beside the file's own alpha / rank; may be negative; 0: as if it were not there
    mode: LoraMode = LoraMode.auto  # of a finished picture: what ran, never auto

    @property
    def text(self) -> str:
        """`PATH=SCALE`, which `backend.lora.names.parse_lora` reads back as the same LoRA and scale."""
        return f"{self.path}={self.scale!r}"


@dataclass(frozen=True, kw_only=True)
class InputPicture:
    """A picture that another begins from, or the mask of one."""

    path: str  # absolute path of the file; in a request read back from a picture, its base name
    sha256: str  # of the file


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Everything that determines the pixels. Made by `backend.requests.build_request` only."""

    prompt: str  # what the text encoder reads
    original_prompt: str | None = None  # what the person typed, where a reasoner rewrote it; None: the same
    expander: Expander | None = None  # the reasoner that rewrote it; None: nobody did
    template: str | None = None  # what wildcards made the prompt of; None: there were none
    wildcard_seed: int | None = None  # that chose them
    style: str | None = None  # whose sentence the prompt stands in already; None: none
    negative_prompt: str = ""  # blank: the unconditional branch sees no text tokens
    model: str  # registry name or path, as resolved
    seeds: tuple[int, ...]  # one picture each; 0 <= seed < 2**63
    width: int  # pixels, a multiple of 16
    height: int  # pixels, a multiple of 16
    steps: int  # sampler steps, >= 1
    guidance: float  # 1.0: no unconditional branch
    sampler: Sampler = Sampler.euler
    init: InputPicture | None = None  # what the picture begins from; None: noise alone
    mask: InputPicture | None = None  # white: drawn anew, black: kept to the byte; None: all is drawn
    strength: float | None = None  # share of the steps that run from `init`, 0..1; None: there is no `init`
    fit: Fit | None = None  # of `init` to the size; None: likewise
    hires: float | None = None  # the finished picture is drawn again so many times as large; None: it is not
    hires_strength: float | None = None  # share of the steps of that; None: likewise
    around: int | None = None  # seed of the noise that the seeds vary; None: each seed's noise as it is
    amount: float | None = None  # how far, 0..1: the whole of a seed's own noise at 1; None: likewise
    dtype: DType = DType.auto  # auto: float32 on a CPU for a float32 checkpoint, bfloat16 on a GPU
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    encoder: Encoder = Encoder.auto
    loras: tuple[LoraUse, ...] = ()  # they add up
    rl_strength: float | None = None  # of the model's own adapter; None: it has none that can be weighed
    quant: Quant = Quant.auto  # of the transformer's linears
    profile: str | None = None  # class of card to plan memory for, by name; None: what is free decides
    vram: int | None = None  # bytes of the GPU to plan for and to keep to; None: what is free
    preview: Preview = Preview.off  # while it is drawn; the pixels are the same
    compiled: bool = False  # the transformer's blocks by torch.compile: other last bits, just as exact


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What made the picture, for its metadata. Base names and hashes only, never a path."""

    name: str  # registry name, or the folder's or file's base name
    revision: str | None = None  # hub commit, where the weights came from a pinned source
    sha256: dict[str, str] = field(default_factory=dict[str, str])  # component -> SHA-256 of its weights file(s)
