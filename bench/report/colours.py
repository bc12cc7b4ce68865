"""Colours and markers that mean the same in every report.

Each colour has a contrast of at least 3:1 on white and on a dark page, so that one colour serves both themes.
"""

from __future__ import annotations

import zlib

#: Codebase → colour and marker (matplotlib's name; the page draws the same shapes).
CODEBASES = {
    "native": ("#0072b2", "o"),
    "torchvision": ("#a87900", "s"),
    "mmdet": ("#d55e00", "^"),
    "paddledet": ("#009070", "D"),
    "detectron2": ("#b8569a", "v"),
    "mayaku": ("#7a6bd0", "P"),
}
OTHERS = (
    ("#2f86c6", "o"),
    ("#8a8234", "s"),
    ("#c0504d", "^"),
    ("#4f8a4f", "D"),
    ("#a0609c", "v"),
    ("#5f7fa8", "P"),
    ("#9a6b4f", "X"),
)
#: Phases have a palette of their own, from grey to purple.
PHASES = {
    "data": "#8c8c8c",
    "forward": "#b8b3cf",
    "backward": "#8d80bd",
    "optimizer": "#6a51a3",
    "ema": "#c78fd6",
    "network": "#b8b3cf",
    "post": "#6a51a3",
}
OTHER_PHASES = ("#5f5f6f", "#a9a9c9", "#7f5f8f")


def look(codebase: str) -> tuple[str, str]:
    """Colour and marker of a codebase; of an unknown one by a hash of its name, so that it is the same everywhere."""
    known = CODEBASES.get(codebase)
    return known or OTHERS[zlib.crc32(codebase.encode()) % len(OTHERS)]


def phase_colour(name: str) -> str:
    return PHASES.get(name) or OTHER_PHASES[zlib.crc32(name.encode()) % len(OTHER_PHASES)]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2, 0..1.

    Args:
        colour: As `#rrggbb`.
    """
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
