"""Making an environment: `uv venv`, then one `uv pip install` per step of adapter.yaml."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.environments import installer, named, store
from bench.environments.installer import cache_folder
from bench.environments.store import Progress, folder_of, lock_of, only_one, steps_of, venv_python
from bench.errors import BenchError, did_you_mean
from bench.recipe.codebases import Codebase, Step

#: First words of the lines of uv that are worth showing while it works.
_NEWS = ("Downloading", "Building", "Built", "Prepared", "Installed", "warning:")
_LOG_TAIL_LINES = 15
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def create(
    codebase: Codebase,
    groups: Sequence[str] = (),
    progress: Progress = print,
    *,
    name: str | None = None,
    pins: Sequence[str] = (),
) -> Path:
    """Build the environment unless it is there already.

    A failure or an interruption removes what was begun. A kill leaves a folder without `lock.json`, which the
    next create removes. Of two creates at once the second waits for the first and finds its work done.

    Args:
        codebase: The codebase.
        groups: Names of optional steps (`compiled-ops`).
        progress: Is called with each line to show.
        name: What recipes call it, beside the locked environment of the codebase.
        pins: Of a named one: packages that are installed in place of the locked versions (`mmdet==3.2.0`).

    Returns:
        The folder of the environment.

    Raises:
        BenchError: A step failed (with the end of uv's output), a group is unknown, or the name is taken.
    """
    environment = codebase.environment
    if pins and not name:
        raise BenchError("--pin makes another environment, which needs a name", hint="--as NAME")
    if environment.kind == "project" and name:
        raise BenchError(
            f"{codebase.name} runs in bench's own environment, which has no steps to repeat",
            hint=f"make an environment with the versions you want, then bench env adopt {name} --python PATH",
        )
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
    if name:
        named.refuse_other_pins(name, codebase, pins)
    folder = named.folder_of_name(name) if name else folder_of(codebase, groups)
    with only_one(codebase.name, progress):
        if lock_of(folder) is not None:
            progress(f"{codebase.name}: already there ({folder})")
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # what a killed create left
        try:
            _build(codebase, tuple(sorted(groups)), folder, progress, tuple(pins))
        except BaseException:  # a KeyboardInterrupt too
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def _build(
    codebase: Codebase, groups: tuple[str, ...], folder: Path, progress: Progress, pins: tuple[str, ...]
) -> None:
    started = time.monotonic()
    python = codebase.environment.python
    uv = _Uv(cache_folder() / "logs" / f"{folder.name}.log", progress)
    progress(f"{codebase.name}: python {python} venv in {folder}")
    folder.mkdir(parents=True)
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The same interpreter for all codebases where that is possible: builds of one version differ in speed.
    base = getattr(sys, "_base_executable", sys.executable) if python == mine else python
    uv.run("venv", "--no-python-downloads", "--python", base, str(folder / "venv"))
    steps = [*steps_of(codebase, groups), *([Step(packages=list(pins))] if pins else [])]
    for number, step in enumerate(steps, 1):
        listed = " ".join(filter(None, [step.requirements, *step.packages]))
        progress(f"{codebase.name}: step {number}/{len(steps)}: {listed}")
        _install(step, codebase, folder, uv)
    progress(f"{codebase.name}: importing {codebase.environment.smoke or 'nothing'}")
    store.smoke_python(codebase, venv_python(folder))
    seconds, size_bytes = round(time.monotonic() - started, 1), _size_bytes(folder)
    version = [str(venv_python(folder)), "-Ic", "import platform; print(platform.python_version())"]
    found = subprocess.check_output(version, text=True).strip()
    packages = store.distributions(venv_python(folder))
    facts = {"pins": pins, "groups": groups, "create_s": seconds, "size_bytes": size_bytes}
    store.write_lock(folder, codebase, found, packages, **facts)
    progress(f"{codebase.name}: ready after {seconds} s, {size_bytes / 1e6:.0f} MB beside uv's cache")


def _install(step: Step, codebase: Codebase, folder: Path, uv: _Uv) -> None:
    """Install what a step lists and nothing else: requirements of requirements have to be listed."""
    # uv takes torch and its relatives from the index of PyTorch that fits the driver.
    fitting = ["--torch-backend", "auto"] if has_driver() else []
    arguments = ["--no-deps", *fitting, *step.options, *step.packages]
    if step.requirements:
        arguments += ["--requirements", str(codebase.folder / step.requirements)]
    variables = {
        name: value.replace("{adapter}", str(codebase.folder)) for name, value in step.variables.items()
    }
    if step.build_against:
        arguments += ["--no-build-isolation", *_kept_as(step, folder)]
    uv.run("pip", "install", "--python", str(venv_python(folder)), *arguments, variables=variables)


def _kept_as(step: Step, folder: Path) -> list[str]:
    """Settings of the build that make uv keep its wheel for all that the binary fits, and for nothing else.

    A binary fits one version of what it was linked with. Without an NVIDIA driver it has no GPU kernels. (That it
    fits one python and one platform uv knows.)
    """
    installed = store.distributions(venv_python(folder))
    against = {name: installed.get(canonicalize_name(name)) for name in step.build_against}
    fits = store.key(against, dict(step.variables), has_driver())
    names = [Requirement(package).name for package in step.packages]
    return [f"--config-settings-package={name}:bench-fits={fits}" for name in names]


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return NVIDIA_DRIVER.exists()


def gpu_advice(codebase: Codebase, folder: Path) -> str:
    """What the user can do where an environment cannot use this machine's GPU as well as it might; else empty.

    Args:
        codebase: The codebase.
        folder: Its environment.
    """
    lock = store.lock_of(folder)
    if lock is None or not has_driver():
        return ""
    packages, python = lock["packages"], store.python_of_lock(folder, lock)
    if version := packages.get("paddlepaddle"):
        index = "https://www.paddlepaddle.org.cn/packages/stable/cu126/"
        return (
            f"{codebase.name}: paddlepaddle {version} is built for the CPU. For the GPU, with the cuXXX of your "
            f"driver:\n  uv pip uninstall --python {python} paddlepaddle\n"
            f"  uv pip install --python {python} paddlepaddle-gpu=={version} --index-url {index}"
        )
    if "mmcv-lite" in packages and "mmcv" not in packages:
        return (
            f"{codebase.name}: mmcv-lite has no CUDA operators; torchvision's stand in for them. To compile "
            f"mmcv's own:\n  bench env create {codebase.name} --group compiled-ops"
        )
    return ""


class _Uv:
    """uv with all its output in a log."""

    def __init__(self, log: Path, progress: Progress) -> None:
        self._log = log
        self._progress = progress
        self._variables = installer.variables()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def run(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        """Run one command of uv.

        Raises:
            BenchError: It failed; the message holds the end of the log.
        """
        command = [installer.uv(), *arguments]
        with self._log.open("a") as file:
            print("$", *command, file=file, flush=True)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**self._variables, **(variables or {})},
                start_new_session=True,  # a group that ends as a whole: a build starts compilers
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    file.write(line)
                    if line.lstrip().startswith(_NEWS):
                        self._progress(f"  {line.strip()}")
                status = process.wait()
            finally:
                if process.poll() is None:  # interrupted
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
        if status != 0:
            tail = "\n".join(f"    {line}" for line in self._log.read_text().splitlines()[-_LOG_TAIL_LINES:])
            raise BenchError(
                f"installation failed (exit status {status}); the end of its output:\n{tail}",
                where=str(self._log),
                hint="nothing is left behind; correct the cause (network, disk, compiler, python, pin), try again",
            )


def _size_bytes(folder: Path) -> int:
    """Bytes of the files that nothing else holds: a hard link to uv's cache costs nothing."""
    stats = (path.lstat() for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
