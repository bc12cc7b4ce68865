"""Blocks as one HTML file that needs nothing else: no network, no other file, no script but a table sorter.

Everything that comes from a record is escaped by the template, and a content security policy allows only the
one script written here, so that a label cannot run anything even if an escape were missing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from bench.report.document import Block, Figure, Heading, Table


@dataclass(frozen=True)
class _Element:
    """A block and what its place in the page adds to it."""

    value: Block
    anchor: str = ""
    """Of a heading: its id, unique in the page."""
    label: str = ""
    """Of a table: the heading it stands under."""
    source: str = ""
    """Of a figure: a data URI. As an image, an SVG can neither run scripts nor clash in ids with another."""

    @property
    def kind(self) -> str:
        return type(self.value).__name__


def render(blocks: Iterable[Block], figures: Path) -> str:
    """The page; SVG figures are read from the folder `figures` and put into it."""
    elements = list(_elements(blocks, figures))
    headings = [element for element in elements if isinstance(element.value, Heading)]
    contents = [element for element in headings if element.value.level == 2]  # type: ignore[union-attr]
    script = _resource("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        title=headings[0].value.text if headings else "bench",  # type: ignore[union-attr]
        blocks=elements,
        contents=contents,
        script=Markup(script),  # our own file, not data
        script_hash=f"sha256-{digest}",
    )


def _elements(blocks: Iterable[Block], figures: Path) -> Iterable[_Element]:
    under = ""
    seen: dict[str, int] = {}
    for block in blocks:
        match block:
            case Heading(_, text):
                under = text
                slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
                seen[slug] = seen.get(slug, 0) + 1
                anchor = slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"
                yield _Element(block, anchor=anchor)
            case Table():
                yield _Element(block, label=under)
            case Figure(name, _):
                svg = (figures / f"{name}.svg").read_bytes()
                yield _Element(block, source=f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}")
            case _:
                yield _Element(block)


def _resource(name: str) -> str:
    return (resources.files("bench.report") / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_resource("page.html.j2"))
