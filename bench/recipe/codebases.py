"""Finding codebases: every adapter is a folder with `adapter.yaml` and `adapter.py`, and only the first is read here.

Built-in adapters live in `adapters/`; more come from `--adapters DIR` and from the entry-point group
`bench.adapters`, whose entries name a package that is such a folder. Nothing is imported, so listing is cheap and a
broken codebase cannot break the list.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from bench import shipped
from bench.errors import BenchError, did_you_mean
from bench.recipe import plain_yaml
from bench.recipe.problems import explain
from bench.recipe.workload import Strict

BUILTIN = shipped.ROOT / "adapters"
ENTRY_POINT_GROUP = "bench.adapters"


class Step(Strict):
    """One install step of an environment, in order: `uv pip install --no-deps` of what it lists.

    In variables `{adapter}` stands for the adapter's folder.
    """

    requirements: str = ""
    """A locked requirements file beside `adapter.yaml`."""
    packages: list[str] = []
    """Pinned packages whose own requirements are not to be believed."""
    options: list[str] = []
    """Options of `uv pip install`."""
    build_against: list[str] = []
    """Build `packages` from source against these distributions of the environment; uv's cache keeps the wheel."""
    variables: dict[str, str] = {}
    """Environment variables of this step (compiler, build switches)."""


class Environment(Strict):
    """The locked virtual environment of a codebase. `project` means the one that bench itself is installed in."""

    kind: Literal["project", "own"] = "project"
    """project: bench's own environment; own: one that `bench env create` builds."""
    python: str = "3.11"
    """Version of Python."""
    steps: list[Step] = []
    """Install steps, in order."""
    groups: dict[str, list[Step]] = {}
    """Optional install steps by name (`compiled-ops`)."""
    smoke: str = ""
    """Modules to import to see that the environment works, separated by spaces."""


class Offer(Strict):
    """A canonical model as this codebase offers it."""

    name: str
    """The codebase's own name of it."""
    tasks: list[Literal["train", "infer"]] = ["train", "infer"]
    """Tasks that it can do."""
    options: dict[str, Any] = {}
    """Handed to the adapter as `job.options`; an arm's own options win."""
    note: str = ""
    """Shown in lists."""


class Codebase(Strict):
    """`adapter.yaml`."""

    name: str
    """How recipes name the codebase."""
    title: str
    """How reports name it."""
    url: str = ""
    """Where it is from."""
    summary: str = ""
    """One sentence for lists."""
    packages: list[str]
    """Distributions whose versions identify the codebase in a table, the first one above all."""
    environment: Environment = Environment()
    """Where it runs."""
    models: dict[str, Offer]
    """Canonical model → what this codebase calls it."""
    options: dict[str, str] | None = None
    """What an arm's `options` may be, and what each does; without this field any are handed on."""
    beside: dict[str, dict[str, dict[str, Any]]] = {}
    """Other codebase → canonical models (`solov2*`) → options with which the work here is the other's: `bench vs` and
    `bench init` set those of the first pattern that fits."""
    missing: dict[str, str] = {}
    """Canonical model → why this codebase has none; `*` stands for all others."""
    aliases: list[str] = []
    """Other names of the codebase in recipes."""
    config_option: str = "config"
    """The option that an arm's `config` goes to."""
    checkpoints: list[str] = []
    """How the files end that weights are read from; without this field any are tried."""
    pretrained: bool = False
    """Own models bring weights of their own: `bench vs` measures their AP."""
    schemes: list[str] = []
    """Prefixes of own model names it also takes: `mmdet` allows `model: mmdet://solov2/…`."""
    inputs: list[Literal["shared", "pipeline"]] = ["shared", "pipeline"]
    """Input modes that it can do."""
    precisions: list[Literal["float32", "bfloat16", "float16", "float64"]] = ["float32"]
    """Precisions that it can do."""
    cuda_precisions: list[Literal["bfloat16", "float16"]] = []
    """Precisions that it can do on CUDA devices only."""
    devices: list[Literal["cpu", "cuda"]] = ["cpu", "cuda"]
    """Devices that it can run on."""
    ema: bool = True
    """Whether it can keep an average of the weights."""
    max_ranks: int = 1
    """Most processes that it can train with."""
    launcher: Literal["local", "torchrun", "paddle"] = "local"
    """Who starts its processes: local starts one."""
    variables: dict[str, str] = {}
    """Environment variables with which this codebase is known to run best; recorded."""
    source: str | None = None
    """Folder to import the codebase from, seen from the adapter's: the codebase is not installed."""
    preload: list[str] = []
    """Modules that `bench check` may import once and fork both revisions from: what the codebase is built on, never a
    part of itself, and nothing that starts threads when it is imported."""
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def adapter_file(self) -> Path:
        return self.folder / "adapter.py"

    @property
    def source_folder(self) -> Path | None:
        """Where `source` leads."""
        return None if self.source is None else (self.folder / self.source).resolve()

    def model_of(self, name: str) -> tuple[str, str | None]:
        """What a workload calls a model that this codebase calls `name`.

        Args:
            name: A canonical name, a name of the codebase's own, or a file of its own.

        Returns:
            The model of the workload: canonical, where the codebase offers a canonical model by that name without
            changes, else `<codebase>://<name>`, without the folder of a file. And the name for the adapter, a
            file with its whole path; None of a canonical model.
        """
        offered = [one for one, offer in self.models.items() if offer.name == name and not offer.options]
        if name in self.models or offered:
            return (name if name in self.models else offered[0]), None
        file = Path(name).expanduser()
        if os.path.exists(file):
            return f"{self.name}://{file.resolve().name}", str(file.resolve())
        return f"{self.name}://{name}", name

    def options_beside(self, other: str, model: str) -> dict[str, Any]:
        """Options with which a canonical model is that of the other codebase, where they have to be asked for."""
        found = (it for pattern, it in self.beside.get(other, {}).items() if fnmatchcase(model, pattern))
        return dict(next(found, {}))

    def why_missing(self, model: str) -> str:
        """Why the codebase does not offer a canonical model."""
        return self.missing.get(model) or self.missing.get("*") or f"{self.name} offers no {model}"


def _entry_point_folders() -> Iterable[Path]:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = importlib.util.find_spec(entry.value.partition(":")[0])
        except (ImportError, ValueError):  # of a package that is gone
            spec = None
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder)


def load_codebase(folder: Path) -> Codebase:
    """Read one adapter folder. Raises BenchError that names the file and the field."""
    path = folder / "adapter.yaml"
    if not path.exists():
        raise BenchError("not an adapter folder: it has no adapter.yaml", where=str(folder))
    try:
        content, places = plain_yaml.parse(plain_yaml.text_of(path), str(path))
        return Codebase.model_validate(content).model_copy(update={"folder": folder.resolve()})
    except ValidationError as error:
        raise explain(error, Codebase, places, path) from None


def find_codebases(extra: Iterable[Path] = ()) -> dict[str, Codebase]:
    """All codebases by name. A folder given with `--adapters` may hold one adapter or several; it wins over a
    built-in one of the same name."""
    found_codebases = [load_codebase(path.parent) for path in sorted(BUILTIN.glob("*/adapter.yaml"))]
    for folder in _entry_point_folders():
        try:
            found_codebases.append(load_codebase(folder))
        except BenchError as error:  # one broken plugin must not end every command
            warnings.warn(f"an adapter is left out: {error}", stacklevel=2)
    folders: list[Path] = []
    for root in extra:
        found = [path.parent for depth in ("", "*/") for path in root.glob(f"{depth}adapter.yaml")]
        if not found:
            raise BenchError("no adapter.yaml here or one level below", where=str(root))
        folders += sorted(found)
    return {codebase.name: codebase for codebase in (*found_codebases, *map(load_codebase, folders))}


def get_codebase(name: str, codebases: Mapping[str, Codebase], where: str = "") -> Codebase:
    """A codebase by its name or an alias. Raises BenchError, which names the place `where`."""
    for codebase in codebases.values():
        if name == codebase.name or (name in codebase.aliases and name not in codebases):
            return codebase
    named = re.compile(rf"^name:\s*['\"]?{re.escape(name)}['\"]?\s*$", re.MULTILINE)
    here = (file for pattern in ("", "*/", "*/*/") for file in Path().glob(f"{pattern}adapter.yaml"))
    own = next((file.parent for file in here if named.search(file.read_text(errors="replace"))), None)
    hint = did_you_mean(name, codebases) if own is None else f"its adapter is here: --adapters {own}"
    raise BenchError(f"unknown codebase '{name}'", where=where, hint=hint)
