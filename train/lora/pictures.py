"""A person's own folder of pictures with captions beside them: `a.png` and `a.txt`. Read, checked, placed in buckets.

All that is wrong is found before anything is encoded, and told at once: pictures that cannot be read or are too small,
captions that are missing, empty or no text, two pictures that share one caption file.

Heavy ring: Pillow.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.errors import FileError, UsageError, os_reason
from backend.foreign import documents
from backend.paths import resolved
from backend.sizes import parse_ratio, size_for
from train.data.buckets import TOO_SMALL, BucketConfig, Placement, nearest_ratio, place
from train.data.pictures import PICTURE_BYTES, SUFFIXES, Unreadable, decode, read_head
from train.data.text_rules import MAX_BYTES, unusable
from train.lora.config import LoraConfig

SHOWN = 8  # names listed in one message
FEWEST = 8  # pictures from which on some are held out


@dataclass(frozen=True)
class Picture:
    """One picture that can be trained on."""

    key: str  # its path below the folder, with slashes
    path: Path
    sha256: str  # of the file
    caption: str  # with the trigger before it
    placed: Placement
    member: str | None = None  # of a tar or a Parquet file, as `scan` of a work folder has it; None: a plain file
    offset: int | None = None
    nbytes: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of its bucket, pixels."""
        return self.placed.height, self.placed.width

    def read(self) -> bytes:
        """The file's bytes. Raises FileError, OSError."""
        return _bytes(self)


@dataclass(frozen=True)
class Found:
    """A picture that was found, and not looked at yet."""

    key: str  # its path below the folder, with slashes
    path: Path
    caption: Callable[[], str | None]  # its own, None: it has none; raises Unreadable
    beside: str  # where its own caption would be
    member: str | None = None
    offset: int | None = None
    nbytes: int = 0


def _bytes(picture: Picture | Found) -> bytes:
    if picture.member is None:
        return documents.read_bytes(picture.path, PICTURE_BYTES)
    from train.data.work import open_picture  # pyarrow

    names = ("path", "member", "offset", "nbytes")
    return open_picture({name: getattr(picture, name) for name in names})


@dataclass(frozen=True)
class Folder:
    """What a folder holds."""

    training: tuple[Picture, ...]  # by key
    held: tuple[Picture, ...]  # never trained on; by key
    left_out: tuple[tuple[str, str], ...]  # (key, why)

    @property
    def fingerprint(self) -> str:
        """Hash everything that decides what is trained on."""
        rows = [(p.key, p.sha256, p.caption, p.placed) for p in (*self.training, *self.held)]
        return hashlib.sha256(repr((len(self.training), rows)).encode("utf-8", "surrogatepass")).hexdigest()

    def buckets(self) -> dict[tuple[int, int], list[Picture]]:
        """(height, width) -> training pictures; smallest shapes first."""
        found: dict[tuple[int, int], list[Picture]] = defaultdict(list)
        for picture in self.training:
            found[picture.shape].append(picture)
        return dict(sorted(found.items(), key=lambda row: (row[0][0] * row[0][1], row[0])))


def read_folder(
    config: LoraConfig, bases: Sequence[int], decoded_before: Callable[[str, Placement], bool] = lambda *_: False
) -> Folder:
    """Raises UsageError (no pictures), FileError naming what cannot be used, unless `config.skip`.

    `decoded_before(sha256, placement)`: True for a picture that is known to be whole, which saves decoding it again.
    """
    buckets = BucketConfig(bases=tuple(bases), upscale=config.upscale, least_kept=config.least_kept)
    listed = _selected(config) if is_work(config.pictures) else _in_folder(config)
    good: list[Picture] = []
    bad: list[tuple[str, str]] = []
    needed = 1.0
    for found in listed:
        key = found.key
        try:
            caption = _caption(found, config)
            data = _bytes(found)
            head, problem = read_head(data)
            if problem is not None:
                raise Unreadable(problem)
            placed = place(head.width, head.height, buckets, key)
            if isinstance(placed, str):
                if placed == TOO_SMALL:
                    needed = max(needed, _enlarged(head.width, head.height, buckets))
                raise Unreadable(f"{head.width}x{head.height} is {placed}")
            sha256 = hashlib.sha256(data).hexdigest()
            if not decoded_before(sha256, placed):
                decode(data)
            where = (found.member, found.offset, found.nbytes)
            good.append(Picture(key, found.path, sha256, caption, placed, *where))
        except (Unreadable, documents.Unreadable, FileError) as error:
            bad.append((key, str(error)))
        except OSError as error:
            bad.append((key, os_reason(error)))
    if bad and not (config.skip and good):
        raise _unusable(config, bad, len(listed), needed)
    training, held = _split(good, config)
    return Folder(training, held, tuple(bad))


def is_work(folder: Path) -> bool:
    """Whether it is a work folder of `lens train data`, whose selection is trained on, and no folder of pictures."""
    return (folder / "config.json").is_file() and (folder / "scan").is_dir() and (folder / "plan").is_dir()


def _selected(config: LoraConfig) -> list[Found]:
    """What `select` and `dedup` kept, with the captions that were written for it, else those that came with it.

    Raises LensError for a stage that is missing, UsageError where nothing was kept.
    """
    from train.data.scan import planned
    from train.data.selection import kept_rows
    from train.data.work import Work

    work = Work(config.pictures.resolve())
    columns = ["key", "path", "member", "offset", "nbytes", "caption"]
    found: list[Found] = []
    for shard in planned(work):
        written: dict[str, str | None] = {}
        if work.mark("caption", shard) is not None:
            table = work.read("caption", shard, columns=["key", "caption"])
            written = dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))
        for row in kept_rows(work, shard, columns, deduplicated=False).to_pylist():
            text = written.get(row["key"]) or row["caption"]
            place = {name: row[name] for name in ("member", "offset", "nbytes")}
            found.append(Found(row["key"], Path(row["path"]), lambda text=text: text, "caption", **place))
    if not found:
        raise UsageError(f"{config.pictures}: no picture of this work folder was kept", hint="lens train data select")
    return sorted(found, key=lambda one: one.key)


def _in_folder(config: LoraConfig) -> list[Found]:
    """The pictures of a folder, each with the .txt beside it."""
    paths = _listed(config)
    twins = _sharing_a_caption(paths)

    def found(path: Path) -> Found:
        beside = path.with_suffix(".txt")

        def caption() -> str | None:
            if beside in twins:
                others = ", ".join(name for name in twins[beside] if name != path.name)
                raise Unreadable(f"shares the caption {beside.name} with {others}")
            return _read(beside)

        return Found(path.relative_to(config.pictures).as_posix(), path, caption, f"caption {beside.name}")

    return [found(path) for path in paths]


def _listed(config: LoraConfig) -> list[Path]:
    """The pictures, by name; nothing hidden, nothing that a run wrote there itself."""
    root = config.pictures
    if not root.is_dir():
        raise UsageError(
            f"{root}: {'not a folder' if root.exists() else 'no such folder'}", hint="a folder of pictures"
        )
    own = [resolved(folder) for folder in (config.run_dir, config.cache_dir)]
    found = [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and not any(resolved(path).is_relative_to(folder) for folder in own)
    ]
    if not found:
        raise UsageError(f"{root}: no pictures here", hint=f"files of these kinds: {' '.join(sorted(SUFFIXES))}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


# Captions ------------------------------------------------------------------------------------------------------------


def _sharing_a_caption(paths: Iterable[Path]) -> dict[Path, list[str]]:
    """Caption file -> names of the pictures that claim it, where they are several."""
    claims: dict[Path, list[str]] = defaultdict(list)
    for path in paths:
        claims[path.with_suffix(".txt")].append(path.name)
    return {beside: names for beside, names in claims.items() if len(names) > 1 and beside.exists()}


def _caption(found: Found, config: LoraConfig) -> str:
    """Raises Unreadable."""
    text = own = found.caption()
    if text is None or not text.strip():
        text = config.caption
        if text is None:
            raise Unreadable(f"its {found.beside} is {'missing' if own is None else 'empty'}")
    whole = " ".join(part for part in (config.trigger, text.strip()) if part)
    problem = unusable(whole)
    if problem is not None:
        raise Unreadable(problem)
    return whole


def _read(path: Path) -> str | None:
    """None: there is no such file."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)  # what is longer is refused anyway
            more = file.read(1)
    except FileNotFoundError:
        return None
    if more:
        raise Unreadable(f"its caption {path.name} has {path.stat().st_size:,} bytes, which is no caption")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable(f"its caption {path.name} is no UTF-8 text (binary data?)") from None


# What cannot be used -------------------------------------------------------------------------------------------------


def _enlarged(width: int, height: int, config: BucketConfig) -> float:
    """How many times a side of the picture would have to grow for the smallest base."""
    wide, high = size_for(parse_ratio(nearest_ratio(width, height, config.ratios)), config.bases[0])
    return max(wide / width, high / height)


def _unusable(config: LoraConfig, bad: Sequence[tuple[str, str]], total: int, needed: float) -> FileError:
    shown = "; ".join(f"{key}: {why}" for key, why in bad[:SHOWN])
    more = f"; … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    ways: list[str] = []
    if any("caption" in why and ("missing" in why or "empty" in why) for _, why in bad) and config.caption is None:
        ways.append('one caption for those without: --set caption="a sks dog"')
    if needed > 1:
        rounded = math.ceil(100 * needed) / 100
        ways.append(f"enlarge small pictures: --set upscale={rounded:g}" if rounded <= 8 else "smaller --set bases=…")
    if len(bad) < total:
        ways.append("leave these out: --set skip=true")
    return FileError(f"{len(bad)} of {total} pictures cannot be used: {shown}{more}", hint="; or ".join(ways) or None)


def _split(pictures: Sequence[Picture], config: LoraConfig) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """(training, held out). By the files' contents: the same on every machine, and no copy is on both sides."""
    if not config.held_out or len(pictures) < FEWEST:
        return tuple(pictures), ()
    count = max(1, round(config.held_out * len(pictures)))
    ordered = sorted({picture.sha256 for picture in pictures}, key=lambda one: _mixed(one, config.seed))
    copies = Counter(picture.sha256 for picture in pictures)
    chosen: set[str] = set()
    taken = 0
    for sha256 in ordered[:-1]:  # one is left to be trained on, whatever happens
        if taken >= count:
            break
        chosen.add(sha256)
        taken += copies[sha256]
    return (
        tuple(picture for picture in pictures if picture.sha256 not in chosen),
        tuple(picture for picture in pictures if picture.sha256 in chosen),
    )


def _mixed(sha256: str, seed: int) -> bytes:
    return hashlib.sha256(f"held out {seed} {sha256}".encode()).digest()
