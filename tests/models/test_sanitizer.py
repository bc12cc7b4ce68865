"""The C code under the compiler's sanitizers: no read or write beyond an array, nothing undefined."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.process import ROOT

PROGRAM = """
import torch
from detectors.cpu import library, winograd
assert library.built() is not None
torch.manual_seed(0)
for count, channels, outputs, height, width in (
    (1, 1, 1, 1, 1), (2, 3, 5, 4, 9), (1, 17, 65, 7, 13), (3, 64, 130, 9, 6), (1, 40, 33, 21, 22)
):
    x = torch.randn(count, channels, height, width).contiguous(memory_format=torch.channels_last)
    weight, gradient = torch.randn(outputs, channels, 3, 3), torch.randn(count, outputs, height, width)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        winograd.convolution(x, weight, torch.randn(outputs))
        winograd.gradient_of_input(gradient, weight)
        winograd.gradient_of_weight(x, gradient)
print("done")
"""


@pytest.mark.nightly
def test_the_kernels_stay_within_their_arrays(tmp_path: Path) -> None:
    found = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    library = Path(found.stdout.strip())
    if not library.is_absolute():
        pytest.skip("the compiler has no address sanitizer")
    environment = {
        **os.environ,
        "CC": "cc -g -fsanitize=address,undefined -fno-sanitize-recover=all",
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": str(library),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "done"
