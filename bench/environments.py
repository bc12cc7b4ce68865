"""One locked virtual environment per codebase.

    ~/.cache/bench/                        or $BENCH_CACHE
        envs/<codebase>-<key>/
            venv/                          `python -m venv`, filled by the pip steps of adapter.yaml
            overlay/                       links to distributions of bench's own environment (torch …)
            lock.json                      what was resolved; written last, so no environment without it
        wheels/<key>/*.whl                 what had to be compiled, kept for the next environment
        logs/<codebase>-<key>.log          all that pip said

The key is a hash of everything that decides the content: python, platform, install steps and the versions of
the shared distributions. A changed pin is therefore another environment, never a silently outdated one.

**Sharing.** A torch install takes gigabytes, so it is not stored again. The distributions named in `overlay`,
and what they require, appear in the codebase's environment through a folder of links that one `.pth` line
appends to `sys.path`. Only those: the other packages of bench's environment stay invisible, so a codebase
cannot pick up a version it did not pin. The folder stands *outside* the venv on purpose: pip uninstalls only
below `sys.prefix`, and must never follow a link and delete files of bench's own environment.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bench.errors import BenchError, did_you_mean
from bench.recipe.codebases import Codebase, Step
from bench.record.run import write_atomic

Progress = Callable[[str], None]

#: Lines of pip worth showing while it works.
_PIP_NEWS = ("Collecting ", "Processing ", "Building wheel", "Installing collected")
_LOG_TAIL_LINES = 15
#: Part of every venv, pinned or not.
_BOOTSTRAP = frozenset({"pip", "setuptools"})

# Isolated (-I): neither PYTHONPATH nor the user's site-packages may add to what is listed.
_LIST_DISTRIBUTIONS = """
import importlib.metadata, json
found = {}
for d in importlib.metadata.distributions():
    if d.metadata["Name"]:
        found.setdefault(d.metadata["Name"], d.version)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Drift:
    """A package that is not what the lock says. `locked` None: no pin names it; `found` None: it is gone."""

    package: str
    locked: str | None
    found: str | None

    def __str__(self) -> str:
        if self.locked is None:
            return (
                f"{self.package} {self.found} is not pinned; add {self.package}=={self.found} to adapter.yaml"
            )
        return f"{self.package} is {self.found or 'missing'}, locked is {self.locked}"


@dataclass(frozen=True)
class Installed:
    """A complete environment of the cache. `packages` holds shared distributions too."""

    codebase: str
    folder: Path
    groups: tuple[str, ...]
    python: str
    created_utc: str
    create_s: float
    size_bytes: int
    packages: Mapping[str, str]


def cache_folder() -> Path:
    """`$BENCH_CACHE`, else `bench` in the user's cache folder."""
    if chosen := os.environ.get("BENCH_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"


def create(codebase: Codebase, groups: Sequence[str] = (), progress: Progress = print) -> Path:
    """Build the environment unless it is there already; returns its folder.

    A failure or an interruption removes what was begun; a kill leaves a folder without `lock.json`, which the
    next create removes. Two creates at once: the second waits for the first and finds its work done.
    Raises BenchError with the end of pip's output when a step fails.
    """
    environment = codebase.environment
    if environment.kind == "project":
        progress(f"{codebase.name} runs in bench's own environment: nothing to create")
        return Path(sys.prefix)
    for group in groups:
        if group not in environment.groups:
            raise BenchError(
                f"codebase '{codebase.name}' has no optional group '{group}'",
                where=str(codebase.folder / "adapter.yaml"),
                hint=did_you_mean(group, environment.groups),
            )
    folder = _folder(codebase, groups)
    with _only_one(codebase.name, progress):
        if _lock(folder) is not None:
            progress(f"{codebase.name}: already there ({folder})")
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # what a killed create left
        try:
            _build(codebase, tuple(sorted(groups)), folder, progress)
        except BaseException:  # a KeyboardInterrupt too
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def python_of(codebase: Codebase, groups: Sequence[str] = ()) -> Path:
    """The interpreter that runs this codebase. Raises BenchError when its environment has not been created.

    Of several environments that have the wanted groups it is the one with most: who compiled the optional
    kernels wants them used.
    """
    if codebase.environment.kind == "project":
        return Path(sys.executable)
    return _python(_find(codebase, groups))


def versions(codebase: Codebase, groups: Sequence[str] = ()) -> dict[str, str]:
    """Locked versions of all distributions the codebase runs with, for the run's record."""
    if codebase.environment.kind == "project":
        return {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return dict(read_lock(_find(codebase, groups))["packages"])


def check(codebase: Codebase, groups: Sequence[str] = ()) -> list[Drift]:
    """What differs between the environment as it is now and its lock; empty when nothing does.

    For a codebase that runs in bench's own environment the lock is the `==` requirements of this package.
    Raises BenchError when the environment is missing or its smoke import fails.
    """
    if codebase.environment.kind == "project":
        found: dict[str, str] = {
            canonicalize_name(d.name): d.version for d in importlib.metadata.distributions() if d.name
        }
        pins = _pins(importlib.metadata.requires("detection-bench") or [])
        return [
            Drift(name, pin, found[name])
            for name, pin in pins.items()
            if name in found and found[name] != pin  # an optional extra need not be installed
        ]
    folder = _find(codebase, groups)
    lock = read_lock(folder)
    found = _distributions(_python(folder))
    drifts = [
        Drift(name, lock["packages"].get(name), found.get(name))
        for name in sorted({*lock["packages"], *found})
        if lock["packages"].get(name) != found.get(name)
    ]
    drifts += [Drift(name, None, found[name]) for name in lock["not_pinned"] if name in found]
    _smoke(codebase, _python(folder))
    return drifts


def remove(codebase: Codebase) -> list[Path]:
    """Delete all environments of a codebase, those of earlier pins too; built wheels stay.

    Returns the deleted folders.
    """
    if codebase.environment.kind == "project":
        raise BenchError(f"'{codebase.name}' runs in bench's own environment, which is not removed")
    with _only_one(codebase.name, lambda _: None):
        folders = [env for env in _all_folders() if env.name.rpartition("-")[0] == codebase.name]
        for folder in folders:
            (folder / "lock.json").unlink(missing_ok=True)  # first: half of an environment is none
            shutil.rmtree(folder)
    return folders


def list_environments() -> list[Installed]:
    """All complete environments of the cache, by codebase."""
    found = []
    for folder in _all_folders():
        if lock := _lock(folder):
            found.append(
                Installed(
                    codebase=lock["codebase"],
                    folder=folder,
                    groups=tuple(lock["groups"]),
                    python=lock["python"],
                    created_utc=lock["created_utc"],
                    create_s=lock["create_s"],
                    size_bytes=lock["size_bytes"],
                    packages=lock["packages"],
                )
            )
    return found


def read_lock(folder: Path) -> dict[str, Any]:
    """`lock.json`: python, groups, packages (name → version), time and size of the creation."""
    lock = _lock(folder)
    if lock is None:
        raise BenchError("not a complete environment", where=str(folder))
    return lock


# -- where things are ----------------------------------------------------------------------------------------


def _python(folder: Path) -> Path:
    return folder / "venv" / "bin" / "python"


def _site_packages(folder: Path, python: str) -> Path:
    return folder / "venv" / "lib" / f"python{python}" / "site-packages"


def _all_folders() -> list[Path]:
    return sorted(path for path in (cache_folder() / "envs").glob("*-*") if path.is_dir())


def _lock(folder: Path) -> dict[str, Any] | None:
    """The lock of a complete environment, else None. Without its base interpreter a venv is not complete."""
    try:
        lock = json.loads((folder / "lock.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return lock if isinstance(lock, dict) and _python(folder).exists() else None


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _folder(codebase: Codebase, groups: Iterable[str]) -> Path:
    environment = codebase.environment
    steps = [step.model_dump() for step in _steps(codebase, groups)]
    shared = {d.name: d.version for d in _shared_distributions(environment.overlay)}
    # Of bench's own python only what a link depends on: the ABI, and where the links lead.
    base = [platform.python_version(), sys.prefix] if environment.overlay else []
    key = _key(environment.python, sys.platform, platform.machine(), steps, shared, base)
    return cache_folder() / "envs" / f"{codebase.name}-{key}"


def _steps(codebase: Codebase, groups: Iterable[str]) -> list[Step]:
    optional = [step for group in sorted(groups) for step in codebase.environment.groups[group]]
    return [*codebase.environment.steps, *optional]


def _find(codebase: Codebase, groups: Sequence[str]) -> Path:
    known = sorted(codebase.environment.groups)
    for size in range(len(known), -1, -1):
        for chosen in itertools.combinations(known, size):
            folder = _folder(codebase, chosen)
            if set(groups) <= set(chosen) and _lock(folder) is not None:
                return folder
    options = "".join(f" --group {group}" for group in groups)
    outdated = any(env.codebase == codebase.name for env in list_environments())
    raise BenchError(
        f"the environment of '{codebase.name}' "
        + (
            "was made for other versions or groups, or by a bench installed elsewhere"
            if outdated
            else "has not been created"
        ),
        hint=f"bench env create {codebase.name}{options}",
    )


@contextlib.contextmanager
def _only_one(name: str, progress: Progress) -> Iterator[None]:
    """One process at a time changes a codebase's environments; a killed process loses the lock by itself."""
    path = cache_folder() / "envs" / f".{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{name}: waiting for another process that is changing this environment")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- building ------------------------------------------------------------------------------------------------


def _build(codebase: Codebase, groups: tuple[str, ...], folder: Path, progress: Progress) -> None:
    environment = codebase.environment
    started = time.monotonic()
    log = cache_folder() / "logs" / f"{folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    base = _base_python(codebase)
    folder.mkdir(parents=True)
    progress(f"{codebase.name}: python {environment.python} venv in {folder}")
    _run([str(base), "-m", "venv", str(folder / "venv")], log, progress)
    site = _site_packages(folder, environment.python)
    if environment.overlay:
        overlay = folder / "overlay"
        for distribution in _shared_distributions(environment.overlay):
            link_distribution(distribution, overlay)
        (site / "bench_overlay.pth").write_text(f"{overlay}\n")
    steps = _steps(codebase, groups)
    for number, step in enumerate(steps, 1):
        progress(f"{codebase.name}: step {number}/{len(steps)}: {' '.join(step.pip)}")
        _install(step, codebase, folder, log, progress)
    progress(f"{codebase.name}: importing {environment.smoke or 'nothing'}")
    _smoke(codebase, _python(folder))

    packages = _distributions(_python(folder))
    own = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions(path=[str(site)])}
    pins = _pins(argument for step in steps for argument in step.pip)
    _require_pins(codebase, pins, packages)
    not_pinned = sorted(own - set(pins) - _BOOTSTRAP)
    for name in not_pinned:
        progress(f"{codebase.name}: warning: {Drift(name, None, packages[name])}")
    lock: dict[str, Any] = {
        "codebase": codebase.name,
        "groups": groups,
        "python": subprocess.check_output(
            [_python(folder), "-Ic", "import platform; print(platform.python_version())"], text=True
        ).strip(),
        "platform": platform.platform(),
        "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "create_s": round(time.monotonic() - started, 1),
        "size_bytes": _size_bytes(folder),
        "packages": packages,
        "shared": sorted(set(packages) - own),
        "not_pinned": not_pinned,
    }
    write_atomic(folder / "lock.json", json.dumps(lock, indent=1))
    megabytes = lock["size_bytes"] / 1e6
    progress(f"{codebase.name}: ready after {lock['create_s']} s, {megabytes:.0f} MB")


def _base_python(codebase: Codebase) -> Path:
    """An interpreter of the version that adapter.yaml asks for."""
    environment = codebase.environment
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if environment.python == mine:
        return Path(getattr(sys, "_base_executable", sys.executable))
    where = str(codebase.folder / "adapter.yaml")
    if environment.overlay:
        raise BenchError(
            f"'{codebase.name}' shares {', '.join(environment.overlay)} with bench and so needs its python "
            f"({mine}) to be {environment.python}",
            where=where,
            hint=f"install bench under python {environment.python}",
        )
    found = shutil.which(f"python{environment.python}")
    if found is None:
        raise BenchError(
            f"'{codebase.name}' needs python {environment.python}, which is not on PATH",
            where=where,
            hint=f"install python{environment.python} (apt, pyenv, uv python install {environment.python})",
        )
    return Path(found)


def _install(step: Step, codebase: Codebase, folder: Path, log: Path, progress: Progress) -> None:
    python = _python(folder)
    places = {"{adapter}": codebase.folder, "{site}": _site_packages(folder, codebase.environment.python)}

    def filled(text: str) -> str:
        for place, path in places.items():
            text = text.replace(place, str(path))
        return text

    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    arguments = [filled(argument) for argument in step.pip]
    variables = {name: filled(value) for name, value in step.variables.items()}
    if step.build_against:
        wheels = _built_wheels(step, python, [*pip, "wheel", *arguments], variables, log, progress)
        arguments = ["--no-index", *map(str, wheels)]
    no_deps = ["--no-deps"] if step.no_deps or step.build_against else []
    install = [*pip, "install", "--progress-bar=off", *no_deps, *arguments]
    _run(install, log, progress, variables)


def _built_wheels(
    step: Step,
    python: Path,
    pip_wheel: list[str],
    variables: Mapping[str, str],
    log: Path,
    progress: Progress,
) -> list[Path]:
    """Wheels of a step that compiles: from the cache, else built once against what the environment holds.

    A binary fits one python, one version of what it was linked with, and one kind of machine; without an
    NVIDIA driver it has no GPU kernels.
    """
    installed = _distributions(python)
    against = {name: installed.get(canonicalize_name(name)) for name in step.build_against}
    tag = subprocess.check_output(
        [python, "-Ic", "import sys; print(sys.implementation.cache_tag)"], text=True
    ).strip()
    driver = Path("/proc/driver/nvidia/version").exists()
    key = _key(step.pip, dict(step.variables), against, tag, sys.platform, platform.machine(), driver)
    kept = cache_folder() / "wheels" / key
    if not kept.exists():
        progress("building from source; the wheel is kept for the next time")
        building = kept.with_name(f"{key}.{os.getpid()}")
        try:
            _run(
                [*pip_wheel, "--no-deps", "--no-build-isolation", "-w", str(building)],
                log,
                progress,
                variables,
            )
            if not kept.exists():  # another codebase may have built the same meanwhile
                building.rename(kept)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    else:
        progress(f"built before: {kept}")
    return sorted(kept.glob("*.whl"))


def _run(
    command: list[str], log: Path, progress: Progress, variables: Mapping[str, str] | None = None
) -> None:
    """Run one command with all output in the log. Raises BenchError with the log's end when it fails."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    with log.open("a") as file:
        print("$", *command, file=file, flush=True)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**inherited, **(variables or {})},
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                if line.lstrip().startswith(_PIP_NEWS):
                    progress(f"  {line.strip()}")
            status = process.wait()
        finally:
            if process.poll() is None:  # interrupted
                process.terminate()
                process.wait()
    if status != 0:
        tail = "\n".join(f"    {line}" for line in log.read_text().splitlines()[-_LOG_TAIL_LINES:])
        raise BenchError(
            f"installation failed (exit status {status}); the end of its output:\n{tail}",
            where=str(log),
            hint="nothing is left behind; correct the cause (network, disk, compiler, pin) and try again",
        )


def _smoke(codebase: Codebase, python: Path) -> None:
    """Import the modules of `smoke`. Raises BenchError when one does not import."""
    modules = codebase.environment.smoke.split()
    if not modules:
        return
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    result = subprocess.run([python, "-Ic", code, *modules], capture_output=True, text=True)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
        raise BenchError(
            f"the environment of '{codebase.name}' does not import {', '.join(modules)}: {reason[0]}",
            where=str(python),
            hint=f"bench env remove {codebase.name}, then bench env create {codebase.name}",
        )


def _distributions(python: Path) -> dict[str, str]:
    """Normalised name → version of what an environment's python can import."""
    output = subprocess.check_output([python, "-Ic", _LIST_DISTRIBUTIONS], text=True)
    return {canonicalize_name(name): version for name, version in sorted(json.loads(output).items())}


def _pins(requirements: Iterable[str]) -> dict[str, str]:
    """Normalised name → version of the `name==version` among pip arguments or requirements."""
    pins: dict[str, str] = {}
    for text in requirements:
        with contextlib.suppress(InvalidRequirement):  # options, paths
            requirement = Requirement(text)
            for specifier in requirement.specifier:
                if specifier.operator == "==":
                    pins[canonicalize_name(requirement.name)] = specifier.version
    return pins


def _require_pins(codebase: Codebase, pins: Mapping[str, str], packages: Mapping[str, str]) -> None:
    """A later step may have replaced what an earlier one pinned: then the lock contradicts itself."""
    wrong = [
        str(Drift(name, pin, packages.get(name))) for name, pin in pins.items() if packages.get(name) != pin
    ]
    if wrong:
        raise BenchError(
            f"the steps of '{codebase.name}' contradict each other: {'; '.join(wrong)}",
            where=str(codebase.folder / "adapter.yaml"),
        )


def _size_bytes(folder: Path) -> int:
    """Bytes of the files in a folder; what links lead to is stored elsewhere."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())


# -- sharing -------------------------------------------------------------------------------------------------


def _shared_distributions(names: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Distributions of bench's environment by name, and all that they require, sorted by name.

    Raises BenchError for a named one that is not installed; an absent requirement of one is pip's affair.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), "") for name in names]
    named = {name for name, _ in waiting}
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name not in named:
                continue
            raise BenchError(
                f"{name} is to be shared with bench's own environment, which does not have it",
                hint='pip install "detection-bench[native]"',
            ) from None
        found[name] = distribution
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)]
    return [found[name] for name in sorted(found)]


def link_distribution(distribution: importlib.metadata.Distribution, overlay: Path) -> None:
    """Link the top-level files and packages of a distribution into `overlay`.

    Several distributions may own one folder that is no package of its own (`nvidia/`): such a folder is made,
    and what is in it is linked, so that sharing one of them does not share the others.
    """
    root = Path(str(distribution.locate_file("")))
    entries = set()
    for file in distribution.files or []:
        top = file.parts[0]
        if top in ("..", "__pycache__"):  # scripts start the wrong interpreter
            continue
        whole = "." in top or (root / top / "__init__.py").exists()  # module, metadata, libraries, package
        entries.add(file.parts[: 1 if whole else 2])
    for parts in entries:
        link = overlay.joinpath(*parts)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to(root.joinpath(*parts))
