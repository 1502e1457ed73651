"""The types of ggml by number: their names, and how many bytes a block of elements takes. Standard library only."""

from __future__ import annotations

# ggml type -> (elements in a block, bytes of a block). Kept here so that a file can be checked without numpy;
# tests compare it with gguf.constants.GGML_QUANT_SIZES.
GGML_BLOCKS: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
GGML_NAMES = {  # of the packed types; of a file's whole kind too, as in `lens gen -v`
    2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k",
    20: "iq4_nl", 39: "mxfp4",
}  # fmt: skip


def ggml_name(kind: int) -> str:
    """ "q4_k" for 12; a type without a name here is "ggml N"."""
    return GGML_NAMES.get(kind, f"ggml {kind}")
