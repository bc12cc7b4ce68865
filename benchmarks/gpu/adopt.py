"""The interpreter that is there, with what it lacks from a folder of wheels; nothing of it is changed.

Where something is missing, a virtual environment is made that sees all packages of the interpreter. Its own are the
wheels of what the interpreter lacks, and the source tree is on its path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import site
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Never from wheels: they are the machine's own.
MACHINE = ("torch", "torchvision")
#: Without these a run lacks a fact or a page is larger: `uv` makes environments, which are not made here.
SPARE = ("uv", "nvidia-ml-py", "py-cpuinfo", "tdewolff-minify")


def requirements(root: Path = ROOT) -> list[str]:
    """What bench needs, by the names of `pyproject.toml`, without its pins."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return [_plain(re.split(r"[<>=!~;\s\[]", line, maxsplit=1)[0]) for line in project["dependencies"]]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(names: list[str]) -> list[str]:
    """Those that this interpreter does not have."""
    found = {_plain(str(one.metadata["Name"])) for one in importlib.metadata.distributions()}
    return [name for name in names if _plain(name) not in found]


def wheels_of(folder: Path | None) -> list[str]:
    """Names of the distributions that a folder has wheels of."""
    return sorted({_plain(file.name.split("-")[0]) for file in folder.glob("*.whl")} if folder else [])


def complete(folder: Path, wheels: Path | None) -> str:
    """An interpreter that has what bench needs: this one, or one made in a folder.

    All wheels of what is missing are installed, none for the sake of another: mmdet asks for `opencv-python`, and
    `opencv-python-headless` serves as well.

    Raises:
        SystemExit: Something is missing, and there is no usable wheel of it.
    """
    given = missing(wheels_of(wheels))
    lacking = [name for name in missing(requirements()) if name not in (*SPARE, *given)]
    if lacking:
        folders = f"no wheel of these is in {wheels}" if wheels else "give a folder of wheels: --wheels DIR"
        raise SystemExit(f"missing: {', '.join(lacking)}; {folders}")
    if not given and not missing(["detection-bench"]):
        return sys.executable
    python = _environment(folder / "venv")
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--find-links={wheels}"]
    installed = given and subprocess.run([*install, *given], check=False).returncode == 0
    for name in () if installed else given:  # one of them has no wheel for this interpreter
        if subprocess.run([*install, name], check=False).returncode:
            if name in requirements():
                raise SystemExit(f"no wheel of {name} in {wheels} fits Python {sys.version.split()[0]}")
            print(f"no usable wheel of {name}: arms that need it are left out", flush=True)
    return python


def _environment(folder: Path) -> str:
    """A virtual environment that sees this interpreter's packages and this source tree; its pip is that one's."""
    python, mark = folder / "bin" / "python", folder / "made"
    if mark.exists():
        return str(python)
    # Debian's Python makes none with pip of its own, unless another package is installed.
    pip = ["--without-pip"] if importlib.util.find_spec("pip") else []
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", *pip, folder], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # Also those of a virtual environment that this interpreter itself is of, and what PYTHONPATH names.
    users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    named = [os.path.abspath(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    places = [*named, *site.getsitepackages(), *users, str(ROOT)]
    (packages / "here.pth").write_text("\n".join([*places, ""]))
    about = packages / "detection_bench-0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: detection-bench\nVersion: 0+source\n")
    mark.touch()
    return str(python)
