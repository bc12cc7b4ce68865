"""One locked virtual environment per codebase, made by uv.

    ~/.cache/bench/                        or $BENCH_CACHE
        envs/<codebase>-<key>/
            venv/                          `uv venv`, filled by the steps of adapter.yaml
            lock.json                      what was installed; written last, so no environment without it
        uv/                                uv's cache, or $UV_CACHE_DIR: each wheel unpacked once, compiled ones too
        logs/<codebase>-<key>.log          all that uv said

The key is a hash of everything that decides the content: python, platform, steps and the locked requirements.
A changed pin is therefore another environment, never a silently outdated one.

The files of an environment are hard links to uv's cache (copies where the file system of `UV_CACHE_DIR` is another
one). torch is stored once for all codebases, and for bench itself where `make` installed it.
"""

from bench.environments.build import create, gpu_advice
from bench.environments.installer import cache_folder
from bench.environments.named import adopt, folder_of_name, named_python, names, remove_named
from bench.environments.store import (
    Drift,
    Installed,
    check,
    check_folder,
    list_environments,
    python_of,
    read_lock,
    remove,
    versions,
)

__all__ = [
    "Drift",
    "Installed",
    "adopt",
    "cache_folder",
    "check",
    "check_folder",
    "create",
    "folder_of_name",
    "gpu_advice",
    "list_environments",
    "named_python",
    "names",
    "python_of",
    "read_lock",
    "remove",
    "remove_named",
    "versions",
]
