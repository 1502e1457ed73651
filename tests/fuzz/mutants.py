"""Bytes that are nearly right: good inputs of a parser, edited a few times by hypothesis.

Why it can be trusted: each good input is read by its parser before anything is edited (`test_parsers.py`), and the
edits are those that found something before: numbers that are none, depths, halves of pairs, lengths, links, repeats.
"""

from __future__ import annotations

from hypothesis import strategies as st

HOSTILE = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"\r\n\x1b[31m",
        b'"',
        b"'",
        b"\\",
        b"{",
        b"[",
        b"}",
        b"]",
        b",",
        b":",
        b"=",
        b"<",
    ),
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"0.5", b"1e999", b"-1e999", b"NaN", b"Infinity", b"1" * 400),
    *(b"9" * 5000, b"9223372036854775808", b"-9223372036854775809", b"1" + b"0" * 30, b'"\\ud800"', b'"\\u0000"'),
    *(b"[" * 3000, b'{"a":' * 3000, b"a." * 2000, b"- " * 2000, b", " * 2000, b"<lens:record" * 500, b"<|end|> " * 500),
    *(b"../../x", b"/etc/passwd", b"~nosuchuser/x", b"/dev/zero", b"a\0b", "\u202e\u2028".encode(), b"\xed\xa0\x80"),
    *(b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x01\0\0\0\0\0\0\x80"),
    *("²".encode(), "٣".encode(), b"__metadata__", b"lens_template", b"general.alignment", b"decision", b"step"),
)


@st.composite
def mutants(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A good input with one to six edits, each at a place of its own; now and then no input at all."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((0, 1, 1, 2, 4, 8, 16, 64)))
        match draw(st.sampled_from("replace flip cut repeat value end".split())):
            case "replace":
                data[start : start + length] = draw(st.sampled_from(HOSTILE))
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start : start + length]
            case "repeat":
                data[start:start] = data[start : start + length] * draw(st.sampled_from((1, 2, 50)))
            case "value":  # what stands between two signs of a text
                stop = next((at for at in range(start, len(data)) if data[at] in b',:]}\n"'), len(data))
                data[start:stop] = draw(st.sampled_from(HOSTILE))
            case _:
                del data[start:]
    return bytes(data)
