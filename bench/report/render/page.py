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
from typing import Any

import jinja2
from markupsafe import Markup

from bench.report.document import Block, Details, Figure, Heading, Table
from bench.text_safety import visible


@dataclass(frozen=True)
class _Element:
    """A block and what its place in the page adds to it."""

    value: Block
    anchor: str = ""
    """Of a heading: its id, unique in the page."""
    label: str = ""
    """Of a table: the heading it stands under."""
    inside: tuple[_Element, ...] = ()
    """Of what is folded away: its blocks."""
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
    title = headings[0].value.text if headings else "bench"  # type: ignore[union-attr]
    return framed(templates().get_template("page.html.j2"), title=title, blocks=elements, contents=contents)


def framed(template: jinja2.Template, *, up: str = "", listing: bool = False, **context: Any) -> str:
    """A page with our style, and our script that sorts tables.

    Args:
        template: `page.html.j2`, or one that extends it.
        up: From the page to the folder of the site's index; empty for no link to it.
        listing: Its tables become cards on a phone.
        context: What the template needs.
    """
    script, style = (
        resources.files("bench.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("render/sort.js", "app/style.css")
    )
    ours = {
        "script": Markup(script),
        "style": Markup(style),
        "script_hash": hash_of(script),
    }  # files, not data
    return template.render(up=up, listing=listing, **ours, **context)


def _elements(
    blocks: Iterable[Block], figures: Path, seen: dict[str, int] | None = None
) -> Iterable[_Element]:
    """Elements in order. ``seen``: how often each anchor was used so far."""
    under = ""
    seen = {} if seen is None else seen
    for block in blocks:
        match block:
            case Heading(_, text):
                under = text
                slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
                seen[slug] = seen.get(slug, 0) + 1
                anchor = slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"
                yield _Element(block, anchor=anchor)
            case Details(_, inner):
                yield _Element(block, inside=tuple(_elements(inner, figures, seen)))
            case Table():
                yield _Element(block, label=under)
            case Figure(name, _):
                svg = (figures / f"{name}.svg").read_bytes()
                yield _Element(block, source=f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}")
            case _:
                yield _Element(block)


def html_of(blocks: Iterable[Block]) -> Markup:
    """Blocks without figures as HTML, for a page that has a frame of its own."""
    module: Any = templates().get_template("blocks.html.j2").module
    return Markup(module.render(list(_elements(blocks, Path()))))


def hash_of(script: str) -> str:
    """Of an inline script, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


@cache
def templates() -> jinja2.Environment:
    """Templates of this folder and of the page of a run; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bench.report", "render"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = visible
    return environment
