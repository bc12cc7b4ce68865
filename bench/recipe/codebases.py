"""Finding codebases: every adapter is a folder with `adapter.yaml` and `adapter.py`, and only the first is read here.

Built-in adapters live in `adapters/`; more come from `--adapters DIR` and from the entry-point group
`bench.adapters`, whose entries name a package that is such a folder. Nothing is imported, so listing is cheap and a
broken codebase cannot break the list.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from bench.errors import BenchError, did_you_mean
from bench.recipe.workload import Strict

BUILTIN = Path(__file__).resolve().parents[2] / "adapters"
ENTRY_POINT_GROUP = "bench.adapters"


class Step(Strict):
    """One install step of an environment, in order: `pip install` of these arguments.

    In arguments and variables `{adapter}` stands for the adapter's folder, `{site}` for the site-packages.
    """

    pip: list[str]
    no_deps: bool = False
    build_against: list[str] = []
    """Build a wheel from source against these distributions of the environment, and keep it."""
    variables: dict[str, str] = {}
    """Environment variables of this step (compiler, build switches)."""


class Environment(Strict):
    """The locked virtual environment of a codebase. `project` means the one that bench itself is installed in."""

    kind: Literal["project", "own"] = "project"
    python: str = "3.11"
    steps: list[Step] = []
    groups: dict[str, list[Step]] = {}
    """Optional install steps by name (`compiled-ops`)."""
    overlay: list[str] = []
    """Packages taken from bench's own environment rather than stored again (torch)."""
    smoke: str = ""
    """Modules to import to see that the environment works, separated by spaces."""


class Offer(Strict):
    """A canonical model as this codebase offers it."""

    name: str
    """The codebase's own name of it."""
    tasks: list[Literal["train", "infer"]] = ["train", "infer"]
    options: dict[str, Any] = {}
    note: str = ""


class Codebase(Strict):
    """`adapter.yaml`."""

    name: str
    title: str
    url: str = ""
    summary: str = ""
    packages: list[str]
    """Distributions whose versions identify the codebase in a table, the first one above all."""
    environment: Environment = Environment()
    models: dict[str, Offer]
    """Canonical model → what this codebase calls it."""
    options: dict[str, str] | None = None
    """What an arm's `options` may be, and what each does; without this field any are handed on."""
    missing: dict[str, str] = {}
    """Canonical model → why this codebase has none; `*` stands for all others."""
    schemes: list[str] = []
    """Prefixes of own model names it also takes: `mmdet` allows `model: mmdet://solov2/…`."""
    inputs: list[Literal["shared", "pipeline"]] = ["shared", "pipeline"]
    precisions: list[Literal["float32", "bfloat16", "float16"]] = ["float32"]
    devices: list[Literal["cpu", "cuda"]] = ["cpu", "cuda"]
    ema: bool = True
    max_ranks: int = 1
    launcher: Literal["local", "torchrun", "paddle"] = "local"
    variables: dict[str, str] = {}
    """Environment variables with which this codebase is known to run best; recorded."""
    preload: list[str] = []
    """Modules that `bench check` may import once and fork both revisions from: what the codebase is built on, never a
    part of itself, and nothing that starts threads when it is imported."""
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def adapter_file(self) -> Path:
        return self.folder / "adapter.py"

    def why_missing(self, model: str) -> str:
        """Why the codebase does not offer a canonical model."""
        return self.missing.get(model) or self.missing.get("*") or f"{self.name} offers no {model}"


def _entry_point_folders() -> Iterable[Path]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        spec = importlib.util.find_spec(entry.value.partition(":")[0])
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder)


def load_codebase(folder: Path) -> Codebase:
    """Read one adapter folder. Raises BenchError that names the file and the field."""
    path = folder / "adapter.yaml"
    try:
        content = yaml.safe_load(path.read_text())
        return Codebase.model_validate(content).model_copy(update={"folder": folder.resolve()})
    except FileNotFoundError:
        raise BenchError("not an adapter folder: it has no adapter.yaml", where=str(folder)) from None
    except yaml.YAMLError as error:
        raise BenchError(f"not valid YAML: {error}", where=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{field}: {first['msg']}", where=str(path), hint="see docs/adapters.md") from None


def find_codebases(extra: Iterable[Path] = ()) -> dict[str, Codebase]:
    """All codebases by name. A folder given with `--adapters` may hold one adapter or several; it wins over a
    built-in one of the same name."""
    folders = [path.parent for path in sorted(BUILTIN.glob("*/adapter.yaml"))]
    folders += _entry_point_folders()
    for root in extra:
        found = (
            [root] if (root / "adapter.yaml").exists() else [p.parent for p in root.glob("*/adapter.yaml")]
        )
        if not found:
            raise BenchError("no adapter.yaml here or one level below", where=str(root))
        folders += sorted(found)
    return {codebase.name: codebase for codebase in map(load_codebase, folders)}


def get_codebase(name: str, codebases: dict[str, Codebase]) -> Codebase:
    if name not in codebases:
        raise BenchError(f"unknown codebase '{name}'", hint=did_you_mean(name, codebases))
    return codebases[name]
