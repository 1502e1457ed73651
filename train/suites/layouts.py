"""The layouts that official evaluators walk, and exports in them: links, copies and grids of what a run holds; nothing
is drawn again. Which files an evaluator would really read is stated a second time in `train.suites.listings`, from the
rules of its own listing code.

    geneval      00017/metadata.jsonl (the published line, unchanged), 00017/samples/00000.png
    oneig        images/anime/MODEL/003.webp: one square grid a prompt, lossless; nothing else may lie beside it
    longtext     0142_1.png … 0142_4.png: the prompt's own id, which is not its line
    cvtg         CVTG/2/17.png, CVTG-Style/5/3.png
    geneval2     pictures.json (prompt -> path), pictures/0017.png
    unigenbench  17_0.png … 17_3.png
    flat         ID-0.png
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from backend.disk import make_folder, path_below, write_atomic, write_error
from backend.errors import FileError, UsageError
from backend.foreign import documents
from backend.inputs.files import load_pixels
from train.suites.folder import MADE, Key, RunFolder
from train.suites.prompts import SuitePrompt

ABOUT = "lens-export.json"  # at the top of an export, where no official evaluator looks
WEBP_SIDE = 16_383  # pixels: the format's limit
MOST_IMAGES = 64  # of one prompt


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of an export: a picture, a grid of pictures, or a text."""

    pictures: tuple[Key, ...] = ()  # more than one: a grid, row by row
    grid: bool = False  # a lossless WebP, black where a picture is missing
    text: bytes = b""


Files = Iterator[tuple[str, Entry]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which files an export has."""

    name: str
    files: Callable[[Sequence[SuitePrompt], int, str], Files]  # (prompts, pictures of each, model) -> path, entry
    one: bool = False  # reads a single picture of each prompt


def _geneval(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    for prompt in prompts:
        yield f"{prompt.id}/metadata.jsonl", Entry(text=prompt.line.encode() + b"\n")
        for index in range(images):
            yield f"{prompt.id}/samples/{index:05d}.png", Entry(pictures=((prompt.id, index),))


def _oneig(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    # The splitter takes (columns, rows), the maker (rows, columns): only squares mean the same to both.
    if math.isqrt(images) ** 2 != images:
        raise UsageError(f"OneIG reads square grids: {images} pictures a prompt make none", hint="--n 1, 4 or 9")
    for prompt in prompts:
        keys = tuple((prompt.id, index) for index in range(images))
        yield f"images/{prompt.kind}/{model}/{prompt.facts['id']}.webp", Entry(pictures=keys, grid=True)


def _longtext(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    for prompt in prompts:
        for index in range(images):
            yield f"{prompt.id}_{index + 1}.png", Entry(pictures=((prompt.id, index),))


def _cvtg(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    for prompt in prompts:
        path = f"{prompt.facts['part']}/{prompt.kind}/{prompt.facts['index']}.png"
        yield path, Entry(pictures=((prompt.id, 0),))


def _geneval2(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    paths = {prompt.prompt: f"pictures/{prompt.id}.png" for prompt in prompts}
    for prompt in prompts:
        yield paths[prompt.prompt], Entry(pictures=((prompt.id, 0),))
    yield "pictures.json", Entry(text=json.dumps(paths, ensure_ascii=False, indent=1).encode())


def _unigenbench(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    for prompt in prompts:
        for index in range(images):
            yield f"{prompt.id}_{index}.png", Entry(pictures=((prompt.id, index),))


def _flat(prompts: Sequence[SuitePrompt], images: int, model: str) -> Files:
    for prompt in prompts:
        for index in range(images):
            yield f"{prompt.id}-{index}.png", Entry(pictures=((prompt.id, index),))


_ROWS = (
    Layout(name="geneval", files=_geneval),
    Layout(name="oneig", files=_oneig),
    Layout(name="longtext", files=_longtext),
    Layout(name="cvtg", files=_cvtg, one=True),
    Layout(name="geneval2", files=_geneval2, one=True),
    Layout(name="unigenbench", files=_unigenbench),
    Layout(name="flat", files=_flat),
)
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _ROWS}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What came of an export; `made` and `unmade` together are every picture that the suite asks for."""

    made: int  # pictures
    unmade: Mapping[Key, str]  # picture -> why there is none
    files: int


def export(
    run: RunFolder, prompts: Sequence[SuitePrompt], layout: Layout, to: Path, *, link: bool = False, model: str = "",
) -> Exported:  # fmt: skip
    """Write `layout` into the empty or new folder `to`. `link`: hard links where a file goes over unchanged.

    Raises UsageError for a folder that holds anything, FileError; UntrustedError for a name that leads elsewhere.
    """
    protocol = run.protocol()
    images = 1 if layout.one else int(protocol["images"])
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is not empty: an evaluator would score what else lies there", hint="--to a new folder")
    make_folder(to)
    states, by_id = run.states(prompts, images), {prompt.id: prompt for prompt in prompts}
    unmade = {key: state for key, state in states.items() if state != MADE}

    def place(key: Key) -> Path:
        return run.picture(by_id[key[0]], key[1])

    model, files = model or _model_name(str(protocol.get("model", "lens"))), 0
    for name, entry in layout.files(prompts, images, model):
        path = path_below(to, name, source="the suite")
        here = [place(key) if key not in unmade else None for key in entry.pictures]
        if not entry.text and not entry.grid and here == [None]:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.text:
            write_atomic(path, entry.text)
        elif entry.grid:
            write_atomic(path, grid(here, path))
        elif here[0] is not None:
            _hand_over(here[0], path, link)
        files += 1
    about = {
        "layout": layout.name, "suite": protocol["suite"], "model": model, "images": images,
        "prompts": [prompt.id for prompt in prompts], "run": protocol,
        "unmade": [[*key, state] for key, state in unmade.items()],
    }  # fmt: skip
    write_atomic(to / ABOUT, json.dumps(about, indent=1, ensure_ascii=False).encode())
    return Exported(made=len(states) - len(unmade), unmade=unmade, files=files)


def _model_name(model: str) -> str:
    name = Path(model).name
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)[:60] or "lens"


def _hand_over(source: Path, target: Path, link: bool) -> None:
    try:
        if link:
            try:
                os.link(source, target)
                return
            except OSError:  # another file system: a copy serves as well
                pass
        shutil.copyfile(source, target)
    except OSError as error:
        raise write_error(target, error) from error


def grid(pictures: Sequence[Path | None], path: Path) -> bytes:
    """A square grid as lossless WebP, tiles of one size, black where there is no picture.

    Raises FileError where tiles differ in size or the grid is too large for the format.
    """
    tiles = [None if picture is None else load_pixels(picture) for picture in pictures]
    sizes = {tile.size for tile in tiles if tile is not None} or {(64, 64)}
    if len(sizes) > 1:
        raise FileError(f"the pictures of {path.name} have the sizes {sorted(sizes)}: a grid has tiles of one size")
    (width, height), side = next(iter(sizes)), math.isqrt(len(tiles))
    if max(width, height) * side > WEBP_SIDE:
        raise FileError(f"a grid of {side}x{side} pictures of {width}x{height} is too large for a WebP")
    sheet = Image.new("RGB", (width * side, height * side))
    for number, tile in enumerate(tiles):
        if tile is not None:
            sheet.paste(tile, ((number % side) * width, (number // side) * height))
    stream = io.BytesIO()
    sheet.save(stream, "WEBP", lossless=True, method=2)
    return stream.getvalue()


def read_about(folder: Path) -> dict[str, Any]:
    """What an export says of itself. Raises UsageError where it says nothing, FileError where it is damaged."""
    path = folder / ABOUT
    if not path.is_file():
        raise UsageError(f"{folder} is no export of lens: it has no {ABOUT}", hint="lens eval export RUN --to DIR")
    try:
        about = documents.parse_json(documents.read_bytes(path, 1 << 24))
        known = about["layout"] in LAYOUTS and isinstance(about["suite"], str) and isinstance(about["model"], str)
        unmade = [(str(own), int(index), str(state)) for own, index, state in about["unmade"]]
        images = int(about["images"])
        if not known or not 1 <= images <= MOST_IMAGES:
            raise ValueError("layout or images")
        return {**about, "images": images, "unmade": unmade, "prompts": list(map(str, about["prompts"]))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileError(f"{path} is damaged: {str(error)[:80]}") from error
