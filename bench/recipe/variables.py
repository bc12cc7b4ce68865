"""Which environment variables a recipe may set: settings of speed, by name. Any other may lead to a program."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.errors import BenchError
from bench.recipe.plan import Arm

#: By exact name: a neighbour such as OMP_TOOL_LIBRARIES or LD_PRELOAD loads what it names.
ALLOWED = frozenset({
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES", "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA", "DNNL_PRIMITIVE_CACHE_CAPACITY", "FLAGS_allocator_strategy",
    "FLAGS_conv_workspace_size_limit", "FLAGS_cudnn_deterministic", "FLAGS_cudnn_exhaustive_search",
    "FLAGS_fraction_of_gpu_memory_to_use", "FLAGS_use_mkldnn", "FLAGS_use_pinned_memory", "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT", "GOMP_STACKSIZE", "HIP_VISIBLE_DEVICES", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_HW_SUBSET",
    "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_",
    "MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "NCCL_ALGO", "NCCL_IB_DISABLE",
    "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_PROTO", "NCCL_SHM_DISABLE", "NUMEXPR_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_MAX_ACTIVE_LEVELS", "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND",
    "OMP_SCHEDULE", "OMP_STACKSIZE", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "OPENBLAS_CORETYPE", "OPENBLAS_MAIN_FREE",
    "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "PYTHONHASHSEED", "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF", "ROCR_VISIBLE_DEVICES", "TORCHINDUCTOR_FREEZING", "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
})  # fmt: skip

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def refuse_variables(arms: Iterable[Arm], place: str, *, allow_all: bool) -> None:
    """Check the variables of the arms of a recipe.

    Args:
        arms: Of a plan.
        place: The recipe, for the message.
        allow_all: The user has asked for any variable.

    Raises:
        BenchError: A variable is none of `ALLOWED`, or has a name that no variable can have.
    """
    names = {name for arm in arms for name in arm.variables}
    if wrong := sorted(name for name in names if not _NAME.fullmatch(name)):
        raise BenchError(f"not a name of an environment variable: '{wrong[0]}'", where=place)
    if not allow_all and (others := sorted(names - ALLOWED)):
        raise BenchError(
            f"the recipe sets {', '.join(others)}, which may run programs or load libraries",
            where=place,
            hint="read the recipe, then repeat the command with --allow-variables",
        )
