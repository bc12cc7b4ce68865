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

from bench.environments.build import create as create
from bench.environments.build import gpu_advice as gpu_advice
from bench.environments.installer import cache_folder as cache_folder
from bench.environments.named import adopt as adopt
from bench.environments.named import folder_of_name as folder_of_name
from bench.environments.named import interpreter_path as interpreter_path
from bench.environments.named import named_python as named_python
from bench.environments.named import names as names
from bench.environments.named import remove_named as remove_named
from bench.environments.store import check as check
from bench.environments.store import check_folder as check_folder
from bench.environments.store import list_environments as list_environments
from bench.environments.store import python_of as python_of
from bench.environments.store import read_lock as read_lock
from bench.environments.store import remove as remove
from bench.environments.store import versions as versions
