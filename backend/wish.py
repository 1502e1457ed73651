"""What a person asks for, before anything is decided: one record, whose fields are the one table of what can be asked.

`None` means "not given" in every field. A field's row says by which flag it is typed, which commands take that flag,
whether a settings file may hold it, under which key a picture records it, and what it replaces. From the table are
made: the options of the commands (`lens_cli.options.takes_wish`), the section `generate` of the settings and its names
in the environment (`backend.settings`), what a record holds and gives back (`backend.picture.metadata`), and the
command line that makes a picture again (`backend.wishes.command_words`). `backend.requests.build_request` decides what
is left open.

A new flag is a row here and, where it decides pixels, a field of the same name in `GenerationRequest`.

Light ring: standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from backend.types import (
    DType,
    Encoder,
    Expander,
    Fit,
    GenerationRequest,
    ImageFormat,
    InputPicture,
    LoraMode,
    LoraUse,
    Preview,
    Quant,
    ReasonerMode,
    Sampler,
)

NO_LORA = "none"  # as the only LoRA: not even those of the settings; a file of that name is ./none
PICTURE, BEGIN, REQUEST, OUTPUT = "Picture", "From a picture or a seed", "Request", "Output"  # panels of --help


@dataclass(frozen=True, kw_only=True)
class Row:
    """How one field of a wish is typed, set, recorded and replaced."""

    name: str  # of the field; in a GenerationRequest too, where it decides pixels
    kind: Any  # its type beside None: str, int, float, bool, a StrEnum, a tuple of texts
    flags: tuple[str, ...] = ()  # the first is the one that is printed; none: given in other ways only
    help: str = ""  # {packings} in it: those that approximate, of their own table
    panel: str = PICTURE
    metavar: str | None = None  # None: Typer's own, from the type
    commands: frozenset[str] = frozenset()  # that take the flag
    setting: bool = False  # whether the settings may hold it, as generate.NAME and LENS_GENERATE__NAME
    record: str | None = None  # key in a picture's record; None: not recorded
    verify: bool = False  # whether `rerun --verify` takes it: it says where and how the same picture is computed
    aside: frozenset[str] = frozenset()  # fields of an older wish that mean nothing beside this one


def _row(
    *flags: str, help: str = "", panel: str = PICTURE, metavar: str | None = None, on: str = "gen rerun",  # noqa: A002
    setting: bool = False, record: str | None = None, verify: bool = False, aside: str = "",
) -> Any:  # fmt: skip
    """A field of the table; `on` are the commands that take its flags, `aside` the fields it replaces."""
    commands, replaced = frozenset(on.split() if flags else ()), frozenset(aside.split())
    row = {"flags": flags, "help": help, "panel": panel, "metavar": metavar, "commands": commands}
    row |= {"setting": setting, "record": record, "verify": verify, "aside": replaced}
    return field(default=None, metadata={"row": row, "setting": setting})


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for, by flag, settings file, record or request of a server. None: not given."""

    prompt: str | None = _row(record="prompt", aside="original_prompt expander template wildcard_seed style")
    original_prompt: str | None = _row(record="original_prompt")  # what a reasoner made the prompt of
    expander: Expander | None = _row(record="expander")  # that reasoner
    template: str | None = _row(record="template")  # what wildcards made the prompt of, before any reasoner
    negative_prompt: str | None = _row(
        "--negative-prompt", help="What to avoid.", setting=True, record="negative_prompt"
    )
    model: str | None = _row(
        "--model", "-m", help="A name from `lens models list`, or a path.", on="gen rerun refine bench eval",
        record="model", verify=True, aside="rl_strength",
    )  # fmt: skip
    num: int | None = _row("--num", "-n", help="Number of pictures.")
    seeds: tuple[str, ...] | None = _row(
        "--seed", "-s", help="A seed, a range 100..120, or -1 to draw one. Repeatable.", record="seed"
    )
    wildcards: bool | None = _row(
        "--wildcards/--no-wildcards",
        help="Draw words: {a|b} is one of them, {2$$a|b|c} two, __name__ a line of wildcards/name.txt beside the "
        "settings. On unless said.",
        on="gen", setting=True,
    )  # fmt: skip
    wildcard_seed: int | None = _row(
        "--wildcard-seed", help="Of the drawn words, apart from the picture's; one more for each picture.", on="gen",
        record="wildcard_seed",
    )  # fmt: skip
    style: str | None = _row(
        "--style", metavar="NAME", help="Say how it looks: sticker, photo, watercolour, … or one of your own.",
        on="gen", record="style",
    )  # fmt: skip
    steps: int | None = _row(
        "--steps", help="Sampler steps. Default: the model's.", on="gen rerun bench eval", setting=True, record="steps"
    )
    guidance: float | None = _row(
        "--guidance", "--cfg", "--cfg-scale", help="How strongly to follow the prompt; 1 is off.",
        on="gen rerun bench eval", setting=True, record="guidance",
    )  # fmt: skip
    sampler: Sampler | None = _row(
        "--sampler",
        help="What solves the steps: euler (first order; the default), or dpmpp_2m (DPM++ 2M: second order, from the "
        "step before as well, at the same cost).",
        on="gen rerun bench", setting=True, record="sampler",
    )  # fmt: skip
    init: str | InputPicture | None = _row(
        "--init", "-i", metavar="IMG", help="Begin from this picture instead of noise; its size holds unless one is "
        "said.", panel=BEGIN, record="init", aside="mask",
    )  # fmt: skip
    strength: float | None = _row(
        "--strength", help="With --init: how much is drawn anew, as a share of the steps; 0.6, with a mask 1.",
        panel=BEGIN, record="strength",
    )  # fmt: skip
    mask: str | InputPicture | None = _row(
        "--mask", metavar="IMG", help="With --init: draw only where this picture of its size is white, or transparent; "
        "the rest is kept to the byte.", panel=BEGIN, record="mask",
    )  # fmt: skip
    fit: Fit | None = _row(
        "--fit", help="With --init and a size: scale covers it, extend keeps the picture and draws around it (what a "
        "larger size means).", panel=BEGIN, record="fit",
    )  # fmt: skip
    hires: float | None = _row(
        "--hires", metavar="2x", help="Draw the finished picture again, so many times as large.", panel=BEGIN,
        record="hires",
    )  # fmt: skip
    hires_strength: float | None = _row(
        "--hires-strength", help="With --hires: how much is drawn anew; 0.3 unless said.", panel=BEGIN,
        record="hires_strength",
    )  # fmt: skip
    variations: int | None = _row(
        "--variations", metavar="K", help="Make K pictures that vary the one of --seed a little.", panel=BEGIN,
        aside="num",
    )  # fmt: skip
    around: int | None = _row(
        "--around", metavar="SEED", help="Vary this seed: each --seed says in which direction.", panel=BEGIN,
        record="around",
    )  # fmt: skip
    amount: float | None = _row(
        "--amount", help="With --variations or --around: how far, 0 to 1; 0.3 unless said.", panel=BEGIN,
        record="amount",
    )  # fmt: skip
    ar: str | None = _row(
        "--ar", help="Shape W:H from 1:2 to 2:1, or portrait, landscape, square.", on="gen rerun bench", setting=True,
        aside="size width height",
    )  # fmt: skip
    base: int | None = _row(
        "--base", help="Base resolution: about base² pixels, whatever the shape.", on="gen rerun bench eval",
        setting=True, aside="size width height",
    )  # fmt: skip
    size: str | None = _row(
        "--size", metavar="WxH", help="Exact size in pixels.", on="gen rerun bench", aside="ar base width height"
    )
    width: int | None = _row(
        "--width", "-W", help="Exact width in pixels.", record="width", aside="ar base size height"
    )
    height: int | None = _row(
        "--height", "-H", help="Exact height in pixels.", record="height", aside="ar base size width"
    )
    dtype: DType | None = _row(
        "--dtype", help="Arithmetic of the networks.", on="gen rerun bench eval", setting=True, record="dtype",
        verify=True,
    )  # fmt: skip
    device: str | None = _row(
        "--device", help="auto, cpu, cuda, cuda:N or mps.", on="gen rerun bench eval", setting=True, record="device",
        verify=True,
    )  # fmt: skip
    encoder: Encoder | None = _row(
        "--encoder",
        help="What reads the prompt: exact (torch, any format; the default), or llama (llama.cpp, GGUF only), which is "
        "near-exact: it rounds gpt-oss's positions. Lens-Nano was trained with the rounding.",
        on="gen rerun bench", setting=True, record="encoder", verify=True,
    )  # fmt: skip
    loras: tuple[str, ...] | tuple[LoraUse, ...] | None = _row(
        "--lora", metavar="NAME|PATH[=SCALE]",
        help="A LoRA (.safetensors): a file, or the name of one in the folder of LoRAs; =0.8 weakens it, 1 if left "
        "out. Repeatable: they add up. `none`: without those of the settings.",
        setting=True, record="loras",
    )  # fmt: skip
    lora_mode: LoraMode | None = _row(
        "--lora-mode",
        help="fused adds them to the weights, live runs low-rank ones beside the weights; auto: live where those are "
        "quantised.",
        setting=True, verify=True,
    )  # fmt: skip
    rl_strength: float | None = _row(
        "--rl-strength",
        help="How strongly reinforcement learning acts in a model that is a base with an adapter: 0 is the base, 1 as "
        "trained, up to 1.5 beyond it.",
        on="gen rerun bench eval", setting=True, record="rl_strength",
    )  # fmt: skip
    quant: Quant | None = _row(
        "--quant",
        help="How the transformer's linears lie in memory. auto keeps a packed file packed where that saves memory, "
        "none unpacks it: the same picture. {packings} approximate.",
        on="gen rerun bench", setting=True, record="quant", verify=True,
    )  # fmt: skip
    profile: str | None = _row(
        "--profile", metavar="NAME",
        help="Plan memory for a class of machine: 4GB, 6GB, 8GB, 12GB, 16GB, 24GB, 80GB, 141GB or cpu. Left out: for "
        "what is free.",
        on="gen rerun bench", setting=True, verify=True, aside="vram",
    )  # fmt: skip
    vram: str | None = _row(
        "--vram", metavar="SIZE", help="Use at most so much of the GPU, such as 8GB: planned for, and kept to.",
        on="gen rerun bench", setting=True, verify=True, aside="profile",
    )  # fmt: skip
    compiled: bool | None = _row(
        "--compile/--no-compile",
        help="Let torch.compile fuse the transformer's blocks. The first picture waits for it; kept for later runs. "
        "Other last bits than without, just as exact.",
        on="gen rerun bench", record="compiled", verify=True,
    )  # fmt: skip
    threads: int | None = _row(
        "--threads", help="Processor threads of the networks; left out: OMP_NUM_THREADS, or the physical cores.",
        on="gen rerun refine bench eval", verify=True,
    )  # fmt: skip
    reasoner: ReasonerMode | None = _row(
        "--reasoner",
        help="Who rewrites the request first, or refuses it: local is the model's own language model, api the endpoint "
        "of the settings, off nobody; auto takes the endpoint where there is one, else the model's default.",
        panel=REQUEST, on="gen refine",
    )  # fmt: skip
    system_prompt: str | None = _row(
        "--system-prompt", metavar="NAME|FILE",
        help="The reasoner's instructions: general, geneval, oneig, text, nano, or a file.",
        panel=REQUEST, on="gen refine eval",
    )  # fmt: skip
    output: str | None = _row(
        "--output", "-o",
        help="DIR/, a file name, a template such as '{date}/{slug}-{seed}.png', or - for bytes on stdout.",
        panel=OUTPUT, verify=True,
    )  # fmt: skip
    format: ImageFormat | None = _row("--format", help="File format.", panel=OUTPUT, verify=True)
    quality: int | None = _row(
        "--quality", help="1..100 for JPEG (95) and WebP (lossless if left out).", panel=OUTPUT, verify=True
    )
    no_metadata: bool | None = _row(
        "--no-metadata", help="Write pixels only: no prompt, no seed.", panel=OUTPUT, verify=True
    )
    credentials: bool | None = _row(
        "--credentials/--no-credentials", help="Sign the file with this machine's key (C2PA); see `lens credentials`.",
        panel=OUTPUT, verify=True,
    )  # fmt: skip
    no_history: bool | None = _row(
        "--no-history", help="Leave the pictures out of `lens history`.", panel=OUTPUT, verify=True
    )
    preview: Preview | None = _row(
        "--preview",
        help="Show the picture while it is drawn: proj is small and nearly free, vae decodes each step; off unless "
        "said.",
        panel=OUTPUT, setting=True, verify=True,
    )  # fmt: skip
    open: bool | None = _row("--open", help="Open the pictures with this desktop's viewer.", panel=OUTPUT)
    show: bool | None = _row("--show/--no-show", help="Draw the picture in the terminal.", panel=OUTPUT, verify=True)

    def given(self) -> dict[str, Any]:
        """The fields that were given, by name, in the table's order."""
        return {row.name: value for row in ROWS.values() if (value := getattr(self, row.name)) is not None}

    def overridden_by(self, other: Wish) -> Wish:
        """All that `other` gives, and of this wish what is left: a size, say, sets aside every other way to say one."""
        given = other.given()
        aside = {name for key in given for name in ROWS[key].aside}
        return Wish(**{name: value for name, value in self.given().items() if name not in aside} | given)


def _table() -> dict[str, Row]:
    kinds = {name: get_args(kind)[0] for name, kind in get_type_hints(Wish).items()}  # beside None
    return {item.name: Row(name=item.name, kind=kinds[item.name], **item.metadata["row"]) for item in fields(Wish)}


ROWS = _table()
# What a request has where nothing is said about the field; the others have no such value.
USUAL = {item.name: item.default for item in fields(GenerationRequest) if item.default is not MISSING}


def rows_of(command: str, first: Sequence[str] = ()) -> list[Row]:
    """The rows whose flags a command takes: those named `first` in that order, then the others in the table's."""
    return [row for row in in_order(first) if command in row.commands]


def in_order(first: Sequence[str]) -> list[Row]:
    """The whole table, with the rows named `first` in front."""
    return [*(ROWS[name] for name in first), *(row for row in ROWS.values() if row.name not in first)]
