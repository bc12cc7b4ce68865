"""`uv` with the settings of pip: the indexes, wheels and constraints that pip finds are found by uv as well.

uv ignores pip's configuration on purpose. A machine that gives pip a mirror or wheels on disk would therefore
download everything again. Variables of uv that are set already win.

This file needs the standard library and `uv` only, so that `make` can install the project itself with it:

    python bench/environments/installer.py pip install --editable .
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

#: Option of pip → (variable of uv, what separates several values there).
_OPTIONS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}
#: Of a later one of these places of pip's configuration the value is taken.
_SECTIONS = ("global", "install", ":env:")


def cache_folder() -> Path:
    """The folder of everything that bench keeps: `$BENCH_CACHE`, else `bench` in the user's cache folder."""
    if chosen := os.environ.get("BENCH_CACHE"):
        return Path(chosen).expanduser().resolve()
    home = os.path.expanduser("~")
    if home == "~" and not os.environ.get("XDG_CACHE_HOME"):  # a user without an entry, in a container
        raise FileNotFoundError("this user has no home folder: set BENCH_CACHE to a folder for caches")
    return Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "bench"


def pip_settings() -> dict[str, str]:
    """Pip's configuration as variables of uv; empty without pip.

    Returns:
        Variable of uv → value.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True)
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.stdout.splitlines() if listed.returncode == 0 else []:
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found and option in _OPTIONS:
            variable, separator = _OPTIONS[option]
            found[section][variable] = separator.join(ast.literal_eval(value).split())
    settings = {variable: value for section in _SECTIONS for variable, value in found[section].items()}
    if {"UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"} & settings.keys():
        # As pip: the best version of all places, not of the first place that knows the name.
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return settings


def variables() -> dict[str, str]:
    """The environment of a uv process.

    Its cache lies in bench's own: environments are hard links to it, which need one file system.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {"UV_CACHE_DIR": str(cache_folder() / "uv"), "NO_COLOR": "1", **pip_settings(), **inherited}


def uv() -> str:
    """The path of the uv program that is installed beside bench."""
    from uv import find_uv_bin

    return str(find_uv_bin())


if __name__ == "__main__":
    # For `uv pip` this interpreter's environment is the one to change.
    sys.exit(subprocess.run([uv(), *sys.argv[1:]], env={**variables(), "VIRTUAL_ENV": sys.prefix}).returncode)
