"""Text of strangers, made safe to show, or short. Markdown (`markdown.escape`) and HTML add escapes of their own."""

from __future__ import annotations

import re

# Control characters of C0 and C1 (with the escape character), marks that turn the direction of text, line separators,
# and halves of surrogate pairs, which no output can encode.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with every character that a terminal or browser would obey shown as its escape; tabs and newlines stay.

    >>> visible("\x1b]0;title\x07")
    '\\x1b]0;title\\x07'
    """
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


for_terminal = visible
"""A terminal needs no other escapes."""


def shorten(text: str, width: int, *, at_end: bool = False) -> str:
    """`text` in at most `width` characters: of an id the middle is left out, of a sentence the end.

    >>> shorten("mask-rcnn-r50-fpn-train", 12)
    'mask-r…train'
    """
    if len(text) <= width:
        return text
    if at_end:
        return f"{text[: width - 1].rstrip()}…"
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
