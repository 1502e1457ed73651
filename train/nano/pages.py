"""Draw the page about what Lens-Nano knows: every word of its own list with a picture made by it.

    python -m train.nano.pages docs            # docs/nano.md and docs/nano/*.webp

One load, seed 3, the model's own settings at base 192; a picture that went wrong stays, as it would for a user.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from backend.events import PictureFailed
from backend.requests import build_request
from backend.session import Session
from backend.settings import Settings
from backend.wish import Wish
from backend.wishes.vocabulary import Vocabulary, read_vocabulary
from train.world.scene_text import article

SEED, BASE, SIDE, COLUMNS = "3", 256, 128, 9
PAINTS = "red blue green orange purple turquoise pink brown".split()  # of things, in turn
_LABEL = 16  # pixels below a picture
TEXTS = {
    "things": "Things, each in one of its colours. Left to itself, it paints most of them black.",
    "colours": "Colours.",
    "backgrounds": "Plain backgrounds: “on a plain cream background”. They give the calmest pictures.",
    "grounds": "Grounds.",
    "skies": "Skies.",
    "relations": "Relations of two things.",
    "counts": "Counts.",
    "sizes": "Sizes.",
    "styles": "Styles. All but the flat one arrive seldom: nine of ten pictures of its training were flat.",
}


def prompts_of(category: str, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(word, prompt) of a category, as a person would ask for it."""
    plain = "on a plain pale yellow background"
    preposition = {"wooden floor": "on", "table": "on", "sea": "over the", "snow": "in the", "meadow": "in a"}
    for number, word in enumerate(words):
        match category:
            case "things":
                thing = 'sign that says "OPEN"' if word == "sign" else word
                yield word, f"{article(PAINTS[number % len(PAINTS)])} {thing} {plain}"
            case "colours":
                yield word, f"{article(word)} car {plain if word != 'yellow' else 'on a plain pale blue background'}"
            case "backgrounds":
                yield word, f"a red fish on a plain {word} background"
            case "grounds":
                where = preposition.get(word, "on a")
                yield word, f"a red star {where}{' a' if where == 'on' else ''} {word}"
            case "skies":
                yield word, f"a red boat over the sea under a {word} sky"
            case "relations":
                said = f"to the {word}" if word.endswith("of") and word != "on top of" else word
                inside = "a star inside a ring" if word == "inside" else f"a blue bird {said} a red car"
                yield word, f"{inside} {plain}"
            case "counts":
                yield word, f"{word} green {'apple' if word == 'one' else 'apples'} {plain}"
            case "sizes":
                yield word, f"a {word} red mushroom {plain}"
            case _:
                yield word, f"{word} of a blue fish {plain}"


def draw(vocabulary: Vocabulary, model: str) -> dict[str, list[tuple[str, str, Image.Image]]]:
    """(word, prompt, picture) of every word, by category."""
    found: dict[str, list[tuple[str, str, Image.Image]]] = {}
    with Session(Settings()) as session:
        for category, words in vocabulary.lists.items():
            for word, prompt in prompts_of(category, words):
                wish = Wish(prompt=prompt, model=model, seeds=(SEED,), base=BASE)
                for made in session.draw(build_request(wish, Settings(), print), on_event=lambda event: None):
                    if isinstance(made, PictureFailed):
                        raise made.error
                    found.setdefault(category, []).append((word, prompt, made.image))
            print(f"{category}: {len(found[category])} pictures", flush=True)
    return found


def sheet(pictures: list[tuple[str, str, Image.Image]]) -> Image.Image:
    """The pictures of a category in rows, each with its word below."""
    rows = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + _LABEL)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, (word, _, picture) in enumerate(pictures):
        x, y = number % COLUMNS * SIDE, number // COLUMNS * (SIDE + _LABEL)
        page.paste(picture.resize((SIDE - 4, SIDE - 4), Image.Resampling.LANCZOS), (x + 2, y + 2))
        pen.text((x + SIDE // 2, y + SIDE), word[:24], fill="black", font=font, anchor="ma")
    return page.crop((0, 0, min(COLUMNS, len(pictures)) * SIDE, page.height))


def page(found: dict[str, list[tuple[str, str, Image.Image]]]) -> str:
    """The page as Markdown."""
    parts = [
        "# What Lens-Nano knows\n",
        "Lens-Nano is the small model inside the package. It was trained on drawn scenes and has read a few hundred "
        "words; a prompt with others gets a line that names them. Every picture below is by the model itself, seed "
        f"{SEED}, base {BASE}; none was chosen. `lens models show nano` prints the same lists.\n",
        "What works best: one or two things, a colour for each, a plain pale background. Base 256 is what it was "
        "trained at longest; at 128 things get lost, at 384 they double. Words on signs need a picture of 256x256: at "
        "other sizes few come out right.\n",
    ]
    for category, pictures in found.items():
        examples = " · ".join(f"`{prompt}`" for _, prompt, _ in pictures[:2])
        parts += [
            f"## {category.capitalize()}\n",
            f"{TEXTS[category]} {', '.join(word for word, _, _ in pictures)}.\n",
            f"![{category}](nano/{category}.webp)\n",
            f"Such as {examples}.\n",
        ]
    return "\n".join(parts)


def main(folder: Path, model: str = "nano") -> None:
    from backend.checkpoints.resolve import resolve_model

    vocabulary = read_vocabulary(resolve_model(model).folder)
    assert vocabulary is not None, f"{model} does not say what it knows"
    found = draw(vocabulary, model)
    (folder / "nano").mkdir(parents=True, exist_ok=True)
    for category, pictures in found.items():
        sheet(pictures).save(folder / "nano" / f"{category}.webp", quality=80, method=6)
    (folder / "nano.md").write_text(page(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
