"""Whether a text can be a caption at all: the rules that every stage shares, whoever wrote the text.

Light ring: standard library only.
"""

from __future__ import annotations

import unicodedata

MAX_CHARS = 20_000  # a caption of 250 words has 1,500; the model reads at most 512 tokens of it
MAX_BYTES = 4 * MAX_CHARS + 8  # of a caption's file: no character takes more, and there may be a mark before them


def unusable(text: str | None, max_chars: int = MAX_CHARS) -> str | None:
    """Why `text` cannot be trained on, or None. Says nothing of how good it is (`train.data.captions.ask` does).

    No text or blanks only; more than `max_chars` characters (a whole page, a base64 picture); and what is no text:
    a zero byte, or more than one character in a hundred that is a control character or stands for undecodable bytes.
    """
    if text is None or not text.strip():
        return "no caption"
    if len(text) > max_chars:
        return f"the caption has {len(text):,} characters, more than {max_chars:,}"
    kinds = [unicodedata.category(char) for char in text if char not in "\n\r\t"]
    strange = text.count("\ufffd") + kinds.count("Cc")
    if "\0" in text or "Cs" in kinds or strange * 100 > len(text):  # Cs: half a character, which UTF-8 cannot hold
        return "the caption is no text (binary data?)"
    return None
