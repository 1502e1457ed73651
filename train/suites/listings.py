"""Check that an export is what its official evaluator would score: the files that its own listing code reads, stated
here from that code's rules and not from `train.suites.layouts`, against those which the suite asks for.

What listing code does with a surprise differs: GenEval scores whatever it finds and does not miss a folder, LongText
ends at a file whose number it does not know, OneIG reads an id from the first three letters of every name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageStat

from backend.errors import FileError, UsageError, shown
from backend.foreign import documents
from backend.inputs.files import load_pixels
from train.suites.layouts import ABOUT, LAYOUTS, Entry, read_about
from train.suites.prompts import ONEIG_CLASSES, SuitePrompt

FLAT = 0.5  # standard deviation of a channel, of 255: below it a picture is one colour


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that would make a score wrong."""

    path: str  # within the export
    what: str  # missing, extra, unreadable, size, one colour, listing, text
    why: str

    def row(self) -> str:
        return f"{self.what:<11} {shown(self.path)[1:-1]}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found."""

    expected: int  # pictures that the suite asks for
    read: int  # pictures that the evaluator would read
    unmade: int  # that the run says were refused, lost or failed
    faults: tuple[Fault, ...]


Found = Iterator[tuple[str, str]]  # (path within the export that is read, "" or what its evaluator does with it)


def _geneval(folder: Path, model: str) -> Found:
    for name in sorted(os.listdir(folder)):
        if not (folder / name).is_dir() or not name.isdigit():
            continue
        lines = folder / name / "metadata.jsonl"
        yield f"{name}/metadata.jsonl", "" if lines.is_file() else "the evaluator ends: no metadata.jsonl"
        samples = folder / name / "samples"
        if not samples.is_dir():
            yield f"{name}/samples", "the evaluator ends: no folder samples"
            continue
        for picture in sorted(os.listdir(samples)):
            if (samples / picture).is_file() and re.match(r"\d+\.png", picture):
                yield f"{name}/samples/{picture}", ""


def _oneig(folder: Path, model: str) -> Found:
    for kind in ONEIG_CLASSES.values():
        place = folder / "images" / kind / model
        for name in sorted(os.listdir(place)) if place.is_dir() else []:
            twins = [other for other in os.listdir(place) if other.startswith(name[:3])]
            problem = "" if re.match(r"\d{3}", name) else "the evaluator ends: its name begins with no id"
            yield (
                f"images/{kind}/{model}/{name}",
                problem or ("" if len(twins) == 1 else "two files of one id: skipped"),
            )


def _longtext(folder: Path, model: str) -> Found:
    for path in sorted(folder.glob("*.png")):
        number = path.name.split("_")[0] if "_" in path.name else path.name.split(".")[0]
        yield path.name, "" if number.isdigit() else "the evaluator ends: its name begins with no number"


def _cvtg(folder: Path, model: str) -> Found:
    for part in ("CVTG", "CVTG-Style"):
        for regions in ("2", "3", "4", "5"):
            place = folder / part / regions
            for name in sorted(os.listdir(place)) if place.is_dir() else []:
                if Path(name).suffix.lower() in (".png", ".jpg", ".jpeg"):
                    yield f"{part}/{regions}/{name}", ""


def _geneval2(folder: Path, model: str) -> Found:
    try:
        paths = documents.parse_json(documents.read_bytes(folder / "pictures.json", 1 << 24))
        named = [str(path) for path in paths.values()]
    except (OSError, ValueError, AttributeError):
        yield "pictures.json", "the evaluator ends: it is no map of prompts to paths"
        return
    yield "pictures.json", ""
    for path in named:
        safe = not Path(path).is_absolute() and ".." not in Path(path).parts
        yield path, "" if safe and (folder / path).is_file() else "the evaluator ends: there is no such picture"


def _numbered(pattern: str) -> Callable[[Path, str], Found]:
    def listed(folder: Path, model: str) -> Found:
        for path in sorted(folder.glob("*.png")):
            if re.fullmatch(pattern, path.name):
                yield path.name, ""

    return listed


LISTINGS: Mapping[str, Callable[[Path, str], Found]] = {
    "geneval": _geneval, "oneig": _oneig, "longtext": _longtext, "cvtg": _cvtg, "geneval2": _geneval2,
    "unigenbench": _numbered(r"\d+_\d+\.png"), "flat": _numbered(r".+-\d+\.png"),
}  # fmt: skip


def check(folder: Path, prompts: Sequence[SuitePrompt]) -> Checked:
    """Hold an export against its suite. Raises UsageError where it is none, FileError where it cannot be read."""
    about = read_about(folder)
    chosen = [prompt for prompt in prompts if prompt.id in set(about["prompts"])]
    if len(chosen) != len(set(about["prompts"])):
        raise UsageError(f"{folder} has prompts that are none of {about['suite']}", hint="--data as it was drawn with")
    layout, images, model = LAYOUTS[about["layout"]], about["images"], about["model"]
    wanted = dict(layout.files(chosen, images, model))
    unmade = {(own, index): state for own, index, state in about["unmade"]}
    faults = list[Fault]()
    read = set[str]()
    for path, problem in LISTINGS[layout.name](folder, model):
        read.add(path)
        if problem:
            faults.append(Fault(path=path, what="listing", why=problem))
        elif path not in wanted:
            faults.append(Fault(path=path, what="extra", why="the evaluator would score it; the suite does not ask"))
    for path in _others(folder):
        if path not in read and path not in wanted:
            faults.append(Fault(path=path, what="extra", why="it belongs to no prompt"))
    sizes: dict[tuple[int, int], int] = {}
    for path, entry in wanted.items():
        faults += _look(folder / path, path, entry, path in read, unmade, images, sizes)
    if len(sizes) > 1:
        usual = max(sizes, key=lambda size: sizes[size])
        said = ", ".join(f"{n} of {w}x{h}" for (w, h), n in sizes.items() if (w, h) != usual)
        faults.append(Fault(path=".", what="size", why=f"most are {usual[0]}x{usual[1]}, but {said}"))
    pictures = [key for entry in wanted.values() for key in entry.pictures]
    missing = {fault.path for fault in faults if fault.what in ("missing", "unreadable")}
    there = sum(len(e.pictures) for path, e in wanted.items() if path in read and path not in missing)
    lost = sum(key in unmade for path, e in wanted.items() if path in read for key in e.pictures)
    return Checked(expected=len(pictures), read=there - lost, unmade=len(unmade), faults=tuple(faults))


def _others(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != ABOUT:
            yield name


def _look(
    path: Path, name: str, entry: Entry, listed: bool, unmade: Mapping[tuple[str, int], str], images: int,
    sizes: dict[tuple[int, int], int],
) -> list[Fault]:  # fmt: skip
    """One expected file: is it there, whole, of the usual size, and more than one colour."""
    lost = [key for key in entry.pictures if key in unmade]
    if not path.is_file():
        if entry.pictures and len(lost) == len(entry.pictures) and not entry.grid:
            return []
        return [Fault(path=name, what="missing", why="the evaluator goes on without it")]
    if entry.text:
        same = path.read_bytes() == entry.text
        return [] if same else [Fault(path=name, what="text", why="it is not what the suite publishes")]
    if not listed:
        return [Fault(path=name, what="listing", why="the evaluator does not read it")]
    try:
        with Image.open(path) as opened:
            mode = opened.mode
        picture = load_pixels(path)
    except (OSError, FileError) as error:
        return [Fault(path=name, what="unreadable", why=str(error)[:80])]
    faults = [] if mode == "RGB" else [Fault(path=name, what="size", why=f"its pixels are {mode}, not RGB")]
    side = round(len(entry.pictures) ** 0.5) if entry.grid else 1
    width, height = picture.width // side, picture.height // side
    if picture.width % side or picture.height % side:
        faults.append(Fault(path=name, what="size", why=f"{picture.width}x{picture.height} is no grid of {side}"))
    if len(lost) < len(entry.pictures):
        sizes[width, height] = sizes.get((width, height), 0) + 1
    for number, key in enumerate(entry.pictures):
        left, top = (number % side) * width, (number // side) * height
        tile = picture.crop((left, top, left + width, top + height))
        if key not in unmade and max(ImageStat.Stat(tile).stddev) < FLAT:
            shade = "black" if max(ImageStat.Stat(tile).mean) < 1 else "one colour"
            skipped = ": OneIG leaves it out of the mean" if entry.grid and shade == "black" else ""
            faults.append(Fault(path=name, what="one colour", why=f"picture {number} is {shade}{skipped}"))
    return faults
