"""Will a model run, and how fast? Answered for usual cards from shapes alone, before a byte of it is fetched.

Where everything lies is the memory plan's own answer for such a card. The seconds are *calculated*: operations and
bytes counted from the shapes, divided by what a card of the class is assumed to keep up; nothing here was measured on
those cards. A picture's seconds are those of drawing with all weights in memory and the prompt known; a new prompt
reads the text encoder on top (`encoder_seconds`).

Light ring: standard library only. Legend: N image tokens, L text tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backend.checkpoints.packing_plan import BLOCK_LINEAR, plan_plain
from backend.errors import LensError
from backend.memory.footprint import GB, Job
from backend.memory.plan import MachineMemory, MemoryPlan, ModelBytes, Place, make_plan
from backend.model.tensors import transformer_shapes
from backend.packing import schemes
from backend.params import ModelParams, TextEncoderParams
from backend.presets import HubSource
from backend.types import DType, GenerationRequest, Quant

TOKENS = 200  # of a prompt of usual length, with what ends a conversation
DISK = 2 * GB  # bytes a second that a solid-state disk gives; assumed
PAGEABLE = 4 * GB  # bytes a second to a card from memory that is not page-locked; assumed
POINTWISE = 62.0  # bytes that everything but products moves a number of a stream and block: 52 counted, times 1.2
DECODE = 1.0e7  # operations of the autoencoder's decoder a pixel, counted for FLUX.2's
CONVOLUTIONS = 0.55  # of the rate of products that convolutions reach; assumed
PLAIN = {"BF16": 2, "F32": 4}  # `HubSource.weights` that are no packing -> bytes of a number


@dataclass(frozen=True, kw_only=True)
class Card:
    """A class of machine, by an example. Rates are what is assumed to be kept up, in bfloat16."""

    name: str
    example: str
    device: str  # cuda, mps or cpu
    memory: float  # GB that networks may lie in: the card's, or of a Mac what its GPU may take; 0: no GPU
    host: float  # GB of the machine's memory that are free
    products: float  # 10^12 operations a second of matrix products
    attention: float
    bandwidth: float  # GB/s of the card's memory
    bus: float = 0.0  # GB/s from page-locked host memory

    def machine(self) -> MachineMemory:
        """What the planner is told."""
        size, host = round(self.memory * GB), round(self.host * GB)
        return MachineMemory(device=self.device, card=size, card_free=size, host_free=host)


CARDS = (
    #    name        example           device     GB    host  products attention GB/s  bus
    Card(name="6 GB", example="RTX 3050", device="cuda", memory=6, host=12, products=11, attention=10,
         bandwidth=150, bus=12),
    Card(name="8 GB", example="RTX 4060", device="cuda", memory=8, host=12, products=26, attention=24,
         bandwidth=240, bus=12),
    Card(name="12 GB", example="RTX 3060", device="cuda", memory=12, host=12, products=22, attention=20,
         bandwidth=320, bus=24),
    Card(name="16 GB", example="RTX 4060 Ti", device="cuda", memory=16, host=24, products=38, attention=35,
         bandwidth=250, bus=12),
    Card(name="24 GB", example="RTX 3090", device="cuda", memory=24, host=24, products=60, attention=55,
         bandwidth=840, bus=24),
    Card(name="Mac 24 GB", example="M4 Pro", device="mps", memory=16, host=18, products=6, attention=4,
         bandwidth=240),
    # Two cores with bfloat16 units were measured: 68.5 * 10^12 operations in 200 s. Eight are taken for four times as
    # fast, everything that is no product included.
    Card(name="none", example="8 cores, bf16", device="cpu", memory=0, host=24, products=1.37, attention=1.37,
         bandwidth=math.inf),
)  # fmt: skip
BASIS = (  # lines for a person
    "basis: operations and bytes counted, for assumed rates of such cards; not measured",
    "there. Assumed beside the cards: 12 GB of free memory, 24 GB from 16 GB cards on",
)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """One card's answer."""

    card: Card
    source: HubSource  # what would be fetched
    plan: MemoryPlan | None  # None: it does not run there
    reason: str | None  # why not
    seconds: float | None  # a picture, prompt known, weights in memory

    @property
    def where(self) -> str:
        """What lies where, in a few words."""
        if self.plan is None:
            return "does not fit"
        if self.plan.device == "cpu":
            return "from its file" if self.plan.place is Place.mapped else "in memory"
        return {
            Place.resident: "on the card",
            Place.pinned: "in memory, streamed",
            Place.mapped: "in its file, streamed",
        }[self.plan.place]

    def data(self) -> dict[str, Any]:
        return {
            "card": self.card.name,
            "example": self.card.example,
            "device": self.card.device,
            "repo": self.source.repo,
            "weights": self.source.weights,
            "download_bytes": self.source.total,
            "fits": self.plan is not None,
            "place": None if self.plan is None else str(self.plan.place),
            "peak_bytes": None if self.plan is None else self.plan.peak.most,
            "seconds_calculated": None if self.seconds is None else round(self.seconds, 1),
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What decides the cost of a picture."""

    params: ModelParams
    width: int  # pixels
    height: int  # pixels
    steps: int
    guided: bool
    quant: Quant = Quant.auto
    dtype: DType = DType.auto


def drawing_of(request: GenerationRequest, params: ModelParams) -> Drawing:
    """The same of a complete request, whose model need not be here."""
    return Drawing(
        params=params, width=request.width, height=request.height, steps=request.steps, guided=request.guidance != 1.0,
        quant=request.quant, dtype=request.dtype,
    )  # fmt: skip


def outlooks(drawing: Drawing, source: HubSource) -> list[Outlook]:
    """The answer of every card for the files of one source."""
    return [_outlook(card, drawing, source) for card in CARDS]


def _outlook(card: Card, drawing: Drawing, source: HubSource) -> Outlook:
    model = model_bytes(drawing, source, card.device)
    try:
        plan = make_plan(model, card.machine(), vram=None if card.device != "cuda" else round(card.memory * GB))
    except LensError as error:
        return Outlook(card=card, source=source, plan=None, reason=str(error), seconds=None)
    seconds = picture_seconds(card, model, plan)
    return Outlook(card=card, source=source, plan=plan, reason=None, seconds=seconds)


def model_bytes(drawing: Drawing, source: HubSource, device: str) -> ModelBytes:
    """The weights of a run as a source's files would give them: what `backend.memory.machine.describe` reads from
    headers, from the registry's words instead."""
    itemsize = 4 if drawing.dtype is DType.float32 else 2
    if drawing.dtype is DType.auto and device == "cpu" and source.weights != "BF16":
        itemsize = 4  # as `choose_arithmetic` decides
    linears = [shape for name, shape in transformer_shapes(drawing.params.dit).items() if BLOCK_LINEAR.fullmatch(name)]
    quant = plan_plain(drawing.quant, sum(map(math.prod, linears)), sum(rows for rows, _ in linears))
    stored = schemes.by_name(source.weights)
    keeps = stored is not None and drawing.quant is Quant.auto and device != "cpu"
    bits = stored.bits if keeps and stored is not None else quant.bits
    scheme = source.weights if keeps else quant.scheme
    return ModelBytes(
        job=Job(
            params=drawing.params, width=drawing.width, height=drawing.height, steps=drawing.steps,
            guided=drawing.guided, text_tokens=drawing.params.text.template.room, itemsize=itemsize, block_bits=bits,
            bitsandbytes=quant.bitsandbytes,
        ),
        held=scheme or ("bf16" if itemsize == 2 else "float32"),
        mapped=(keeps or bits is None) and PLAIN.get(source.weights) == itemsize,
    )  # fmt: skip


# Seconds -------------------------------------------------------------------------------------------------------------


def picture_seconds(card: Card, model: ModelBytes, plan: MemoryPlan) -> float:
    """Of the steps and of decoding; see the module's text for what is assumed."""
    job = model.job
    slow = 2.0 if job.itemsize == 4 else 1.0  # float32 products take twice as long at least
    step = slow * _forward(card, job, TOKENS) + (slow * _forward(card, job, 0) if job.guided else 0.0)
    if plan.streamed:
        blocks = plan.blocks / GB
        step = max(step, blocks / card.bus) if plan.place is Place.pinned else step + blocks / (PAGEABLE / GB)
    decode = DECODE * job.width * job.height * plan.decode.work / (CONVOLUTIONS * card.products * 1e12)
    return job.steps * step + slow * decode


def _forward(card: Card, job: Job, text: int) -> float:
    """One branch of one step."""
    dit, tokens = job.params.dit, job.image_tokens + text
    weights = 4 * dit.dim * dit.dim + 3 * dit.dim * dit.mlp_dim  # of a token's own stream
    products = 2.0 * dit.num_layers * weights * tokens
    attention = 4.0 * dit.num_layers * tokens * tokens * dit.dim
    moved = POINTWISE * dit.num_layers * tokens * dit.dim
    if job.block_bits is not None and card.device != "cpu":  # every packed weight is written out once a branch
        moved += 2 * weights * dit.num_layers * (job.block_bits / 8 + 2 * job.itemsize)
    return products / (card.products * 1e12) + attention / (card.attention * 1e12) + moved / (card.bandwidth * 1e9)


def encoder_bytes(params: TextEncoderParams) -> int:
    """What a new prompt reads of the text encoder's file: experts of 4.25 bits, attention of 16."""
    attention = params.hidden_size * params.head_dim * 2 * (params.num_attention_heads + params.num_key_value_heads)
    experts = params.num_local_experts * 3 * params.hidden_size * params.intermediate_size
    return round(params.num_hidden_layers * (2 * attention + experts * 4.25 / 8))


def encoder_seconds(params: TextEncoderParams) -> float:
    """Of a new prompt, on any machine: its file is read from the disk."""
    return encoder_bytes(params) / DISK


def smallest_card(drawing: Drawing, source: HubSource) -> Card | None:
    """The first class of CUDA cards that it runs on; None: none of them."""
    fitting = (one.card for one in outlooks(drawing, source) if one.plan is not None and one.card.device == "cuda")
    return next(fitting, None)


def plan_absent(
    request: GenerationRequest, params: ModelParams, source: HubSource, machine: MachineMemory
) -> MemoryPlan:
    """The plan of a request on this machine, or on the card that it names, for a model that is still to be fetched.

    Raises what `make_plan` raises.
    """
    model = model_bytes(drawing_of(request, params), source, machine.device)
    return make_plan(model, machine, profile=request.profile, vram=request.vram)
