"""What is a key never becomes part of a record."""

from __future__ import annotations

import pytest

from bench.errors import BenchError
from bench.record import secrets
from bench.record.software import speed_variables


def test_speed_variables_are_recorded_by_exact_name() -> None:
    wanted = {
        "CUDA_VISIBLE_DEVICES": "GPU-8f7c0a3e-1b2c-4d5e-9f80-1a2b3c4d5e6f",
        "FLAGS_use_mkldnn": "1",
        "KMP_AFFINITY": "granularity=fine,compact,1,0",
        "LD_PRELOAD": "/usr/lib/libjemalloc.so.2",
        "MKL_DEBUG_CPU_TYPE": "5",
        "NUMEXPR_NUM_THREADS": "2",
        "OMP_NUM_THREADS": "1",
    }
    others = dict.fromkeys(("AWS_SECRET", "FLAGS_other", "HOME", "NVIDIA_X", "PADDLE_X", "TORCH_HOME"), "1")
    assert speed_variables(wanted | others) == wanted


def test_value_that_looks_like_a_key_is_hidden() -> None:
    found = speed_variables({"OMP_API_KEY": "abc", "MKL_MODE": "a8F3k29sLm4Qw7Zx1Vb6Nc5T"})
    assert found == {"MKL_MODE": secrets.HIDDEN, "OMP_API_KEY": secrets.HIDDEN}


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefghijklmnop1234",
        "hf_abcdefghijklmnopqrstuv",
        "ghp_abcdefghijklmnopqrstuv012345",
        "github_pat_11ABCDEFG0abcdefghijkl",
        "nvapi-abcdefghijklmnop_1234",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789012-abcdefghijkl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_well_known_keys_are_hidden(text: str) -> None:
    assert secrets.hidden(f"before {text} after") == f"before {secrets.HIDDEN} after"


def test_passwords_in_urls_are_hidden() -> None:
    assert secrets.hidden("https://me:pass@host/x") == f"https://{secrets.HIDDEN}@host/x"
    assert secrets.hidden("https://host/x?token=abc&y=1") == f"https://host/x?token={secrets.HIDDEN}&y=1"


def test_plain_text_stays() -> None:
    text = "faster_rcnn_r50_fpn at 0123456789abcdef0123456789abcdef01234567, loss 0.25, paddlepaddle==3.0.0"
    assert secrets.hidden(text) == text


def test_secret_of_this_process_is_hidden_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDLE_LICENSE_TOKEN", "plain-words-only")
    assert secrets.hidden("so: plain-words-only.") == f"so: {secrets.HIDDEN}."


def test_hidden_variable_comes_back_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"arms": [{"variables": {"HF_TOKEN": secrets.HIDDEN, "OMP_X": "1"}}]}
    with pytest.raises(BenchError, match="HF_TOKEN"):
        secrets.restored(recipe)
    monkeypatch.setenv("HF_TOKEN", "value")
    assert secrets.restored(recipe) == {"arms": [{"variables": {"HF_TOKEN": "value", "OMP_X": "1"}}]}
