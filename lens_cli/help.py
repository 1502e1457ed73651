"""Help that fits a screen: the everyday options of a drawing command, and all others by topic (`lens help TOPIC`).

Light ring: typer and the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from typer.core import TyperCommand

from lens_cli.command_page import NAME_COLUMN, names_of, one_line, usage, write_text

EVERYDAY = (
    "--model --num --seed --ar --base --steps --guidance --negative-prompt --style --init --strength --mask --hires "
    "--lora --reasoner --prompts --output --open --show --x --y --cells --dry-run --json --quiet --verify "
    "--trust-paths --help"
).split()  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A page of `lens help`: what it is about in one line, a text, and the options it explains."""

    about: str
    text: str
    flags: tuple[str, ...] = ()
    names: Callable[[], str] | None = None  # a paragraph of what there is on this machine


def _styles() -> str:
    from backend.batch.styles import styles
    from backend.paths import styles_file

    names = ", ".join(sorted(styles()))
    return f"Styles: {names}. A small model says which it has not learnt. Your own go into {styles_file()}."


TOPICS = {
    "prompts": Topic(
        about="where the prompt comes from, many at once, wildcards, the reasoner, styles",
        text="Words on the command line are joined into one prompt; - reads it from stdin, -f from a file. A file of "
        "many prompts goes to --prompts: one a line, or JSON Lines with a key for each field of a request. In a prompt "
        "{red|blue} draws one of the words and __name__ a line of wildcards/name.txt. The reasoner rewrites a brief "
        "request before it is drawn, or refuses it.",
        flags=tuple(
            "--prompt --file --negative-prompt --prompts --continue --wildcards --wildcard-seed --style --reasoner "
            "--system-prompt --effort".split()
        ),
        names=_styles,
    ),
    "sizes": Topic(
        about="shape, resolution and exact pixels",
        text="--ar takes a ratio from 1:2 to 2:1 as 16:9, 16x9, 16/9 or 1.78, or a word: square, portrait (3:4), "
        "landscape (4:3), wide (16:9), tall (9:16). --base says how many pixels: about base squared, whatever the "
        "shape (`lens models show NAME` lists a model's bases). --size, or -W and -H, set pixels exactly; they are "
        "multiples of 16.",
        flags=tuple("--ar --base --size --width --height".split()),
    ),
    "sampling": Topic(
        about="seeds, steps, guidance, samplers, previews",
        text="A seed gives the same picture again on this machine. -n 4 draws four seeds, -s 1..4 names them; "
        "--variations draws pictures near one seed. More steps are finer and slower; guidance above 1 follows the "
        "prompt more closely and runs the network twice a step. Defaults are the model's own "
        "(`lens models show NAME`).",
        flags=tuple(
            "--num --seed --variations --around --amount --steps --guidance --sampler --preview "
            "--rl-strength".split()
        ),
    ),
    "pictures": Topic(
        about="pictures from pictures: start from one, paint into one, enlarge one",
        text="--init starts from a picture, --strength says how far to leave it: 0 keeps it, 1 ignores it. --mask "
        "limits the change to what is white in a second picture. --fit says how a picture of another shape becomes "
        "this size: scaled and cropped, or painted on around it. --hires draws the finished picture again, larger.",
        flags=tuple("--init --strength --mask --fit --hires --hires-strength".split()),
    ),
    "memory": Topic(
        about="devices, memory plans, speed",
        text="Before anything is loaded, a plan is made of what lies where; --dry-run shows it, for this machine or "
        "for another one that --profile or --vram names.",
        flags=tuple("--device --profile --vram --dtype --encoder --compile --threads".split()),
    ),
    "server": Topic(
        about="a server that keeps the model in memory",
        text="Where `lens serve` runs, gen, grid and rerun draw there and load nothing; the pictures are the same. "
        "LENS_KEEP_ALIVE=10m starts one with the first picture. `lens ps` shows it, `lens stop` ends it.",
        flags=("--local", "--host"),
    ),
    "quantisation": Topic(
        about="weights of few bits",
        text="A packed file stays packed where that saves memory. Packing an unpacked file (fp8, int8, nf4, gguf) is "
        "approximate and recorded with the picture. `lens models quantize` writes smaller files.",
        flags=("--quant",),
    ),
    "lora": Topic(
        about="LoRAs: names, strengths, several at once",
        text="--lora NAME=0.8 takes a file of the folder of LoRAs, or a path; several add up. The keys of PEFT, "
        "diffusers, ComfyUI, kohya and LyCORIS load.",
        flags=("--lora", "--lora-mode"),
    ),
    "output": Topic(
        about="where pictures go, formats, metadata, history",
        text="-o takes a folder (DIR/), a file name, or a template with {date} {time} {slug} {seed} {index} {model} "
        "{w} {h} {steps}; a file that exists is never replaced. The picture holds its whole request as metadata.",
        flags=tuple(
            "--output --format --quality --no-metadata --no-history --sheet --show --open --credentials".split()
        ),
    ),
    "json": Topic(
        about="answers for scripts: JSON, streams, exit codes",
        text="--json prints one envelope: schema, ok, command, data, error {code, message, hint}. --json-stream prints "
        "a line for each event and the same envelope last. Exit codes: 0 done, 1 failure, 2 usage, 3 network, "
        "4 timeout, 5 model not here, 6 out of memory, 7 refused, 8 part of a batch failed, 130 Ctrl-C.",
        flags=tuple("--json --json-stream --quiet --verbose --no-color --dry-run".split()),
    ),
}  # fmt: skip

# Topics by what other programs call them.
ELSEWHERE = {
    **dict.fromkeys(("negative", "wildcard", "rewrite", "enhance", "batch"), "prompts"),
    **dict.fromkeys(("resolution", "aspect", "ratio", "ratios"), "sizes"),
    **dict.fromkeys(("cfg", "scheduler", "schedulers"), "sampling"),
    **dict.fromkeys(("img2img", "inpaint", "inpainting", "outpaint", "upscale", "image", "images"), "pictures"),
    **dict.fromkeys(("gpu", "vram", "speed", "cpu", "card", "cards", "profiles"), "memory"),
    **dict.fromkeys(("quantization", "packing"), "quantisation"),
    **dict.fromkeys(("adapter", "adapters"), "lora"),
    **dict.fromkeys(("metadata", "format", "formats", "files"), "output"),
    **dict.fromkeys(("exit-codes", "codes", "scripts", "scripting", "errors"), "json"),
}


_CLAUSE = 70  # characters: what is longer is cut at its first colon or semicolon


class BriefCommand(TyperCommand):
    """A command whose --help shows its everyday options in one line each, and says where the others are."""

    own_page = True  # `lens_cli.command_page` leaves it

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what it does, the everyday options and the topics of the rest."""
        formatter.write_usage(ctx.command_path, " ".join(usage(self)))
        write_text(self.help, formatter)
        options = {_first_flag(param): param for param in self.params if getattr(param, "opts", None)}
        usual = _usual()
        with formatter.section("Everyday options [what holds unless said]"):
            shown = [options[flag] for flag in EVERYDAY if flag in options]
            formatter.write_dl(
                [(names_of(param, ctx, full=False), _brief(param, usual)) for param in shown], col_max=NAME_COLUMN
            )
        with formatter.section("More, each with its page: lens help TOPIC"):
            formatter.write_dl([(name, _rest(topic.flags, options) or topic.about) for name, topic in TOPICS.items()])


def topic_of(word: str) -> str | None:
    """The topic that a word means: its name, an option that it explains, one or several of these, or what another
    program calls it; None: none."""
    said = word.lower().lstrip("-")
    for form in (said, f"{said}s", said.removesuffix("s")):
        if form in TOPICS or form in ELSEWHERE:
            return ELSEWHERE.get(form, form)
        explained = next((name for name, topic in TOPICS.items() if f"--{form}" in topic.flags), None)
        if explained is not None:
            return explained
    return None


def topic_page(name: str, command: TyperCommand, context: Any) -> str:
    """The page of a topic, with the options as `command` has them."""
    topic, formatter = TOPICS[name], context.make_formatter()
    formatter.write_text(topic.text)
    if topic.names is not None:
        formatter.write_paragraph()
        formatter.write_text(topic.names())
    options = {_first_flag(param): param for param in command.params if getattr(param, "opts", None)}
    explained: list[Any] = [options[flag] for flag in topic.flags if flag in options]
    formatter.write_paragraph()
    if explained:
        rows = [(names_of(param, context), one_line(param.help)) for param in explained]
        formatter.write_dl(rows, col_max=NAME_COLUMN)
    return formatter.getvalue()


def _rest(flags: Iterable[str], options: dict[str, Any]) -> str:
    return " ".join(flag for flag in flags if flag in options and flag not in EVERYDAY)


def _first_flag(param: Any) -> str:
    return next((flag for flag in param.opts if flag.startswith("--")), param.opts[0])


def _brief(param: Any, usual: dict[str, str]) -> str:
    """The first sentence of an option's help, or its first clause where that is long, and the usual value."""
    text = one_line(param.help).partition(". ")[0]
    if len(text) > _CLAUSE:
        text = min((text.partition(mark)[0] for mark in ("; ", ": ")), key=len)
    value = usual.get(_first_flag(param))
    text = text if text.endswith(".") else f"{text}."
    return text + (f" [{value}]" if value else "")


def _usual() -> dict[str, str]:
    """What holds where neither flag nor settings say otherwise, by flag; that of the default model."""
    from backend import presets

    model = presets.get(presets.default_name())
    own = {"--steps": model.steps, "--guidance": f"{model.guidance:g}", "--base": model.default_base}
    return {
        "--model": model.name, "--num": "1", "--ar": "square", "--output": "this folder", "--reasoner": "off",
        **{flag: f"{model.name}: {value}" for flag, value in own.items()},
    }  # fmt: skip
