"""What each field of the form is, in words: those of `lens gen --help`, but where the app has it otherwise."""

from __future__ import annotations

from backend.wish import ROWS

_OWN = {
    "ar": "The shape of the picture. The arrows go through the nine that the models were trained on; Enter lists them. "
    "Any other ratio or size can be pasted with a `lens gen` line. The base, below More, says how many pixels.",
    "seeds": "Where the noise begins: the same seed and settings give the same picture. The arrows choose between "
    "random, fixed, and next (one more each time); a number that is typed is fixed.",
    "num": "How many pictures one press of Enter makes, each with a seed of its own.",
}


def about(name: str) -> str:
    """What a field of a wish is, as `lens gen --help` has it."""
    from backend.packing.schemes import quant_help

    row = ROWS[name]
    return _OWN.get(name) or row.help.replace("{packings}", quant_help()) or name
