"""A hook of mkdocs that fills the pages with what the code says of itself, when the site is built.

A page holds `<!-- fields module:Class -->`, `<!-- cli -->`, `<!-- models -->` or `<!-- formats -->`; the text of each
is made here. READMEs that stand beside the code become pages, with their links rewritten. Nothing made is committed.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

#: Files of the repository that are pages of the site. What is below docs/ is one under its own name.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "adapters/README.md": "reference/codebases/index.md",
    "detectors/README.md": "reference/codebases/detectors.md",
    **{
        f"adapters/{path.parent.name}/README.md": f"reference/codebases/{path.parent.name}.md"
        for path in sorted((ROOT / "adapters").glob("*/README.md"))
    },
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the READMEs."""
    for source, page in PAGES.items():
        content = with_links((ROOT / source).read_text(), source, page)
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill the places of a page, and let its links to READMEs lead to their pages."""
    makers = {"fields": fields, "cli": commands, "models": models, "formats": formats}

    def made(match: re.Match[str]) -> str:
        return makers[match[1]](*match[2].split())

    uri = page.file.src_uri
    if uri not in PAGES.values():
        markdown = with_links(markdown, f"docs/{uri}", uri)
    return re.sub(r"<!-- (fields|cli|models|formats)\b(.*?) -->", made, markdown)


def with_links(text: str, source: str, page: str) -> str:
    """Text of a file of the repository, with links to where the same file is in the site.

    A link to a file that is no page becomes its text.
    """

    def moved(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        if "://" in target or target.startswith("#"):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        found = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if found is None:
            return words.removeprefix("!")
        link = posixpath.relpath(found, posixpath.dirname(page) or ".")
        return f"{words}({link}{'#' if anchor else ''}{anchor})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", moved, text)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in markdown; bars within cells are escaped."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def fields(name: str) -> str:
    """The fields of a pydantic model: name, type, default, meaning."""
    module, _, word = name.partition(":")
    model = getattr(importlib.import_module(module), word)
    schema = model.model_json_schema()
    required = set(schema.get("required", ()))
    rows = []
    for field, facts in schema["properties"].items():
        if model.model_fields[field].exclude:
            continue
        default = "required" if field in required else f"`{yaml_text(facts.get('default'))}`"
        rows.append((f"`{field}`", type_text(facts), default, " ".join(facts.get("description", "").split())))
    return table(("field", "type", "default", "meaning"), rows)


def yaml_text(value: Any) -> str:
    """A default as a recipe would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping) and value:
        return "as below"
    return "none" if value is None else str(value)


def type_text(facts: Mapping[str, Any]) -> str:
    """A type of JSON schema in words."""
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        page = "recipe.md" if name == "Workload" else ""  # records speak of it, too
        return f"[{name}]({page}#{name.lower()})"
    if "anyOf" in facts:
        return " or ".join(type_text(one) for one in facts["anyOf"])
    if "enum" in facts:
        return ", ".join(f"`{one}`" for one in facts["enum"])
    if "const" in facts:
        return f"`{facts['const']}`"
    kind = str(facts.get("type", "any"))
    if kind == "array":
        inner = facts.get("items") or {}
        return f"list of {type_text(inner)}" if inner else "list"
    if kind == "object" and isinstance(facts.get("additionalProperties"), Mapping):
        return f"map to {type_text(facts['additionalProperties'])}"
    words = {"object": "map", "null": "none", "string": "text", "boolean": "true or false"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {facts[key]:g}" for key, sign in signs.items() if key in facts)
    return f"{words.get(kind, kind)} {bounds}".strip()


def commands() -> str:
    """Every command with its arguments and options, by typer's own generator."""
    import typer
    from typer.cli import get_docs_for_click

    from bench.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="bench")
    text = text.partition("\n")[2]  # the page has a heading of its own
    return re.sub(r"^Examples:\n((?:\n\$ .*\n)+)", as_console, text, flags=re.MULTILINE)


def as_console(match: re.Match[str]) -> str:
    """The examples of a command as one block of code."""
    return "**Examples**:\n\n```console\n" + match[1].strip().replace("\n\n", "\n") + "\n```\n"


def models() -> str:
    """Which codebase offers which model."""
    from bench.recipe.codebases import find_codebases
    from bench.recipe.models import MODELS

    codebases = {name: one for name, one in find_codebases().items() if one.models}
    header = ("model", "title", *codebases)
    rows = [
        (
            f"`{name}`",
            model.title,
            *("yes" if name in codebase.models else "–" for codebase in codebases.values()),
        )
        for name, model in MODELS.items()
    ]
    return table(header, rows)


def formats() -> str:
    """What the modules of the log formats say of them."""
    from bench.importers.formats import MODULES

    heads = [", ".join(format.name for format in module.FORMATS) for module in MODULES]
    return "\n\n".join(
        f"### {head}\n\n{inspect.getdoc(module)}" for head, module in zip(heads, MODULES, strict=True)
    )
