"""What `text-images` is told, and the texts it writes: a person's own, or made-up English signs and notices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.disk import read_error
from backend.errors import UsageError
from backend.fields import check_ranges, within

_LONGEST = 200  # characters of a text


@dataclass(frozen=True, kw_only=True)
class TextImageSettings:
    """What `text-images` is told. The paper gives the kinds of change, not their amounts."""

    count: int = within(1000, 1, 10**9)  # pictures
    seed: int = 0
    bases: tuple[int, ...] = (512, 768, 1024)  # one is drawn for each picture; the shape is one of the nine ratios
    fonts: Path | None = None  # folder of .ttf, .otf, .ttc files; None: Pillow's built-in Aileron
    texts: Path | None = None  # UTF-8 file with a text a line; None: made-up English signs and notices
    backgrounds: Path | None = None  # folder of pictures; None: plain grounds, gradients, stripes, squares, clouds
    most_texts: int = within(3, 1, 6)  # in a picture
    turned: float = within(0.5, 0, 1)  # share of texts that are turned …
    most_degrees: float = within(25.0, 0, 45)  # … by at most this
    blurred: float = within(0.2, 0, 1)  # share of texts that are blurred, by at most 5 % of their letters' height
    outlined: float = within(0.2, 0, 1)  # share of texts with an outline
    quality: int = within(95, 1, 100)  # JPEG

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.bases or not all(64 <= base <= 4096 for base in self.bases):
            raise UsageError(f"bases {self.bases} must be numbers in 64..4096")


def read_texts(path: Path) -> list[str]:
    """One text a line, blanks at the ends gone; empty lines are none. Raises FileError, UsageError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="save it as UTF-8, one text a line") from None
    except OSError as error:
        raise read_error(path, error) from error
    texts = [" ".join(line.split()) for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text", hint="one text a line")
    for text in texts:
        if len(text) > _LONGEST or not text.isprintable():
            raise UsageError(f"{path}: {text[:40]!r}… is longer than {_LONGEST} characters, or no plain text")
    return texts


# -------------------------------------------------------------------------------------------------------- made-up texts

# Only letters that the built-in font has: no accents, no other currency.
_PLACES = (
    "Harbour", "Garden", "River", "Mountain", "Station", "Market", "Lighthouse", "Castle", "Forest", "Bridge", "Valley",
    "Orchard", "Mill", "Island", "Abbey", "Meadow", "Canal", "Summit", "Corner", "Old Town",
)  # fmt: skip
_HOUSES = (
    "Diner", "Bakery", "Books", "Hotel", "Museum", "Theatre", "Pharmacy", "Library", "Kitchen", "Records", "Flowers",
    "Hardware", "Cinema", "School", "Gallery", "Tea Room", "Bicycles", "Antiques", "Tailor", "Grill",
)  # fmt: skip
_GOODS = (
    "Coffee", "Fresh Bread", "Apples", "Tickets", "Maps", "Soup of the Day", "Ice Cream", "Honey", "Postcards",
    "Cheese", "Lemonade", "Umbrellas", "Candles", "Roses", "Pancakes", "Notebooks", "Cherries", "Tea",
    "Pottery", "Boat Tours",
)  # fmt: skip
_NOTICES = (
    "Please Keep Off the Grass", "Mind the Step", "No Entry", "Quiet Please", "Ring the Bell", "Wet Paint", "Exit",
    "Keep Right", "Private Road", "Beware of the Dog", "Open", "Closed", "Back Soon", "Push", "Pull", "Way Out",
    "Lost & Found", "Information", "Do Not Disturb", "Thank You!",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Weekend", "Summer", "Winter")
_SAYINGS = (
    "Every road leads somewhere", "Small steps, long journeys", "The sea is never still", "Begin where you are",
    "Read more, wonder more", "Light finds a way", "Good things take time", "Leave room for surprise",
    "The kettle is always on", "Made by hand, made to last", "All paths meet at the river", "Listen to the rain",
)  # fmt: skip


def made_up(rng: random.Random) -> str:
    """A sign, a price, a notice, a date, a saying, a number."""
    kind = rng.randrange(8)
    if kind == 0:
        text = f"{rng.choice(_PLACES)} {rng.choice(_HOUSES)}"
    elif kind == 1:
        text = f"{rng.choice(_GOODS)} ${rng.randrange(1, 60)}.{rng.choice(('00', '50', '95', '99'))}"
    elif kind == 2:
        text = rng.choice(_NOTICES)
    elif kind == 3:
        text = f"{rng.choice(_DAYS)} {rng.choice(('Sale', 'Market', 'Concert', 'Tour', 'Special', 'Opening'))}"
    elif kind == 4:
        text = f"{rng.choice(('Platform', 'Room', 'Gate', 'Exit', 'Route', 'Pier', 'Level'))} {rng.randrange(1, 200)}"
    elif kind == 5:
        text = f"{rng.choice(_DAYS[:7])} {rng.randrange(1, 13)}:{rng.choice(('00', '15', '30', '45'))} at the {rng.choice(_PLACES)} {rng.choice(_HOUSES)}"  # noqa: E501
    elif kind == 6:
        text = rng.choice(_SAYINGS)
    else:
        letters = "".join(rng.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=rng.randrange(2, 5)))
        text = f"{letters}-{rng.randrange(10, 10_000)}"
    return text.upper() if rng.random() < 0.3 else text


def texts_of(path: Path | None) -> Sequence[str] | None:
    """The texts of a file; None: made up as needed."""
    return None if path is None else read_texts(path)
