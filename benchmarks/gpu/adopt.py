"""The interpreter that is there, with what it lacks from a folder of wheels; nothing of it is changed.

Where something is missing, a virtual environment is made that sees all packages of the interpreter. Its own are from
the wheels, and the source tree is on its path.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import site
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Another codebase, where its wheels are there: what it is made of, and what its own metadata asks for too much of.
MMDET = ("mmengine", "mmcv-lite", "mmdet")
#: Never from wheels: they are the machine's own.
MACHINE = ("torch", "torchvision", "uv")


def requirements(root: Path = ROOT) -> list[str]:
    """What bench needs, by the names of `pyproject.toml`, without its pins."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=!~;\s\[]", line, maxsplit=1)[0] for line in project["dependencies"]]
    return [name for name in names if name not in MACHINE]


def missing(names: list[str]) -> list[str]:
    """Those that this interpreter does not have."""
    found = {
        str(one.metadata["Name"]).lower().replace("_", "-") for one in importlib.metadata.distributions()
    }
    return [name for name in names if name.lower().replace("_", "-") not in found]


def complete(folder: Path, wheels: Path | None) -> str:
    """An interpreter that has what bench needs: this one, or one made in a folder.

    Raises:
        SystemExit: Something is missing, and there is no wheel of it.
    """
    lacking = missing(requirements())
    optional = missing(list(MMDET)) if wheels else []
    if not lacking and not optional and not missing(["detection-bench"]):
        return sys.executable
    if lacking and wheels is None:
        raise SystemExit(f"missing: {', '.join(lacking)}; give a folder of their wheels: --wheels DIR")
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", folder / "venv"], check=True)
        (packages,) = (folder / "venv").glob("lib/python3*/site-packages")
        # Also those of a virtual environment that this interpreter itself is of.
        (packages / "here.pth").write_text("\n".join([*site.getsitepackages(), str(ROOT), ""]))
        about = packages / "detection_bench-0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: detection-bench\nVersion: 0+source\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={wheels}"]
    if lacking:
        subprocess.run([*install, *lacking], check=True)
    for name in optional:
        if subprocess.run([*install, name], check=False).returncode:
            print(f"no usable wheel of {name}: arms that need it are left out", flush=True)
    return str(python)


def restart(python: str) -> None:
    """Go on in another interpreter, if it is another one."""
    if python != sys.executable:
        os.execv(python, [python, "-m", "benchmarks.gpu", *sys.argv[1:]])
