"""What a measurement ran: packages, revisions, and the environment variables that change speed.

A fact that cannot be read is missing, never an error.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.record.secrets import hidden_variables

Facts = dict[str, Any]

#: Environment variables that change speed, by exact name. A variable that is not here may hold anything.
SPEED_VARIABLES = frozenset({
    "ATEN_CPU_CAPABILITY", "BLIS_ARCH_TYPE", "BLIS_JC_NT", "BLIS_IC_NT", "BLIS_JR_NT", "BLIS_IR_NT",
    "CUBLAS_WORKSPACE_CONFIG", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES", "CUDNN_LOGINFO_DBG", "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA", "DNNL_PRIMITIVE_CACHE_CAPACITY", "DNNL_VERBOSE", "FLAGS_allocator_strategy",
    "FLAGS_conv_workspace_size_limit", "FLAGS_cudnn_deterministic", "FLAGS_cudnn_exhaustive_search",
    "FLAGS_fraction_of_gpu_memory_to_use", "FLAGS_use_mkldnn", "FLAGS_use_pinned_memory", "HIP_VISIBLE_DEVICES",
    "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_CONF", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_", "NCCL_ALGO", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL",
    "NCCL_PROTO", "NCCL_SHM_DISABLE", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "ONEDNN_VERBOSE", "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE", "OPENBLAS_MAIN_FREE", "OPENCV_FOR_THREADS_NUM", "OPENCV_OPENCL_RUNTIME",
    "PYTHONMALLOC", "PYTHONOPTIMIZE",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "ROCR_VISIBLE_DEVICES", "TORCHINDUCTOR_FREEZING",
    "TORCHINDUCTOR_MAX_AUTOTUNE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "_RJEM_MALLOC_CONF",
})  # fmt: skip

#: Families of variables that are settings of threads and nothing else.
_THREAD_VARIABLES = re.compile(r"\w+_NUM_THREADS|(OMP|GOMP|KMP|MKL)_[A-Z0-9_]+")

#: Longer changes of a work tree are cut.
MAX_DIFF_BYTES = 256 << 10

_LIST_PACKAGES = """
import sys
sys.path[:] = [path for path in sys.path if path]  # the current folder is not part of an environment
import importlib.metadata, json, platform
packages = {}
for found in importlib.metadata.distributions():
    name = found.metadata["Name"]
    if name and name not in packages:  # the first on the path is the one that is imported
        packages[name] = found.version
print(json.dumps({"python": platform.python_version(), "implementation": platform.python_implementation(),
                  "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower()))}))
"""


def _run(*command: str, timeout_s: float = 10, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a command. Raises OSError or subprocess.SubprocessError."""
    return subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env=env,
    ).stdout


def environment_of(python: Path, env: Mapping[str, str] | None = None) -> Facts:
    """What an interpreter has: ``{python, implementation, packages: {name: version}}``, all installed packages on
    its path. Asks the interpreter itself (3.8 or newer, nothing needed in it). Empty when it does not answer.
    """
    try:
        return dict(json.loads(_run(str(python), "-c", _LIST_PACKAGES, timeout_s=120, env=env)))
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


#: Addresses that anybody may clone: no port, no host of one network, and nothing of a user or a key.
_ADDRESS = re.compile(
    r"(?:(https?|ssh)://(?:[^@/\s]*@)?|[^@/:\s]+@)([\w.-]+\.(?!(?:local|lan|internal|corp|home|test)\b)[a-z]{2,})"
    r"(?(1)/|:)([\w.~-]+(?:/[\w.~-]+)+?)/?",
    re.IGNORECASE,
)


def public_address(remote: str) -> str:
    """`https://HOST/PATH` of a remote repository, without user and password; empty where it has no such address."""
    found = _ADDRESS.fullmatch(remote.strip())
    return f"https://{found[2].lower()}/{found[3]}" if found else ""


def git_revision(folder: Path) -> Facts:
    """``{revision, dirty, origin}`` of a folder that git tracks, else empty; ``origin`` only where it is public.

    Dirty means changes to tracked files: new files, such as results, are not changes of the code. A folder inside
    a work tree that git does not track (an environment in a clone) is no revision of anything.
    """
    git = ("git", "-C", str(folder))
    try:
        _run(*git, "ls-files", "--error-unmatch", ".")
        revision = _run(*git, "rev-parse", "HEAD").strip()
        changes = _run(*git, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {"revision": revision, "dirty": bool(changes.strip())}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # Not `remote get-url`: what a user's own settings put in its place may hold a key.
        if origin := public_address(_run(*git, "config", "--get", "remote.origin.url")):
            found["origin"] = origin
    return found


def git_diff(folder: Path) -> str:
    """Changes of tracked files since the last commit, of the whole work tree that holds a folder; empty where there
    are none. Cut at `MAX_DIFF_BYTES`.
    """
    command = (
        "git",
        "-C",
        str(folder),
        "--no-optional-locks",
        "diff",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
    )
    try:
        diff = _run(*command, "HEAD").encode()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    cut = f"\n# cut: {len(diff)} bytes in all\n" if len(diff) > MAX_DIFF_BYTES else ""
    return diff[:MAX_DIFF_BYTES].decode(errors="ignore") + cut


def speed_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Those of an environment's variables that change speed, sorted; a value that looks like a key is hidden."""
    names = (name for name in sorted(env) if name in SPEED_VARIABLES or _THREAD_VARIABLES.fullmatch(name))
    return hidden_variables({name: env[name] for name in names})
