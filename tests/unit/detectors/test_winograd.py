"""`detectors.winograd` against torch's direct convolution in double precision."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from detectors.cpu import conv2d, library, winograd

PLAIN = ((1, 1), (1, 1), (1, 1), 1)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@given(
    count=st.integers(1, 5),
    height=st.integers(1, 41),
    width=st.integers(1, 41),
    channels=st.integers(1, 70),
    outputs=st.integers(1, 150),
    kernels_at_once=st.sampled_from([0, winograd.KERNELS_AT_ONCE]),
    threads=st.integers(1, 2),
    bias=st.booleans(),
    layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
)
@settings(deadline=None, max_examples=30)
def test_outputs_and_gradients_are_those_of_a_direct_convolution(
    count: int,
    height: int,
    width: int,
    channels: int,
    outputs: int,
    kernels_at_once: int,
    threads: int,
    bias: bool,
    layout: torch.memory_format,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # which decides how tiles are shared out
    try:
        torch.manual_seed(0)
        x = torch.randn(count, channels, height, width).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outputs, channels, 3, 3).contiguous(memory_format=layout)
        shift = torch.randn(outputs) if bias else None
        gradient = torch.randn(count, outputs, height, width).double()
        exact = _sums(x.double(), weight.double(), gradient)
        exact[0] += 0 if shift is None else shift.double()[:, None, None]
        # A sum of a few products can be next to nothing: errors are told in the size that such sums have.
        sizes = [one.sqrt().max() for one in _sums(x.double() ** 2, weight.double() ** 2, gradient**2)]
        with patch.object(winograd, "KERNELS_AT_ONCE", kernels_at_once):  # 0: 64 outputs after 64
            found = winograd.convolution(x, weight, shift)
            gradients = (
                winograd.gradient_of_input(gradient.float(), weight),
                winograd.gradient_of_weight(x, gradient.float()),
            )
        assert found.is_contiguous(memory_format=torch.channels_last)
        for one, expected, size in zip((found, *gradients), exact, sizes, strict=True):
            assert (one - expected).abs().max() < 1e-4 * size
    finally:
        torch.set_num_threads(before)


def _sums(x: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """The convolution and the gradients of its images and weight."""
    of = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = F.conv2d(*of, padding=1)
    return [out.detach(), *torch.autograd.grad(out, of, gradient)]


def test_a_layer_that_is_worth_it_gives_all_three_gradients() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 128, 24, 22), torch.randn(128, 128, 3, 3), torch.randn(128)
    exact = [one.double().requires_grad_() for one in (x, weight, bias)]
    expected = F.conv2d(*exact, padding=1)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    ours = [one.requires_grad_() for one in (x.contiguous(memory_format=torch.channels_last), weight, bias)]
    assert winograd.worthwhile(ours[0], weight, PLAIN)
    out = conv2d(*ours, *PLAIN)
    torch.relu_(out)  # as heads do with what a convolution gave them
    out = conv2d(*ours, *PLAIN)
    out.backward(gradient.float())
    assert relative(out.detach(), expected.detach()) < 1e-5
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert relative(one.grad, other.grad) < 2e-5


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    x = torch.randn(2, 128, 24, 24).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3)
    conv2d(x, weight.requires_grad_(), None, *PLAIN).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("shape", "outputs", "settings_", "layout"),
    [
        ((2, 128, 24, 24), 128, ((2, 2), (1, 1), (1, 1), 1), torch.channels_last),
        ((2, 128, 24, 24), 128, ((1, 1), (2, 2), (2, 2), 1), torch.channels_last),
        ((2, 128, 24, 24), 128, ((1, 1), (1, 1), (1, 1), 2), torch.channels_last),
        ((2, 128, 24, 24), 4, PLAIN, torch.channels_last),  # too few channels
        ((1, 128, 5, 5), 128, PLAIN, torch.channels_last),  # too few tiles
        ((2, 128, 24, 24), 128, PLAIN, torch.contiguous_format),
    ],
)
def test_another_convolution_is_left_to_torch(
    shape: tuple[int, ...], outputs: int, settings_: tuple, layout: torch.memory_format
) -> None:
    x = torch.randn(shape).contiguous(memory_format=layout)
    weight = torch.randn(outputs, 128 // settings_[3], 3, 3)
    assert not winograd.worthwhile(x, weight, settings_)
    with torch.no_grad():
        assert torch.equal(conv2d(x, weight, None, *settings_), F.conv2d(x, weight, None, *settings_))


def test_the_audit_counts_the_work_of_the_convolution() -> None:
    x = torch.randn(2, 128, 24, 24).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(160, 128, 3, 3)
    counts = []
    assert winograd.worthwhile(x, weight, PLAIN)
    for convolve in (conv2d, F.conv2d):
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=winograd.FLOPS) as counter:
            convolve(x, weight, None, *PLAIN)
        x_, weight_ = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with FlopCounterMode(display=False, custom_mapping=winograd.FLOPS) as training_counter:
            convolve(x_, weight_, None, *PLAIN).sum().backward()
        counts.append((counter.get_total_flops(), training_counter.get_total_flops()))
    once = 2 * 9 * 128 * 160 * 2 * 24 * 24
    assert counts[0] == counts[1] == (once, 3 * once)


def test_the_same_images_give_the_same_bits_again() -> None:
    x = torch.randn(2, 128, 33, 21).contiguous(memory_format=torch.channels_last)
    weight, gradient = torch.randn(96, 128, 3, 3), torch.randn(2, 96, 33, 21)
    for one in (
        partial(winograd.convolution, x, weight, None),
        partial(winograd.gradient_of_input, gradient, weight),
        partial(winograd.gradient_of_weight, x, gradient),
    ):
        assert torch.equal(one(), one())


def test_neighbouring_images_do_not_leak_into_each_other() -> None:
    x = torch.randn(3, 64, 9, 10).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3)
    alone = winograd.convolution(x[1:2], weight, None)
    x[0], x[2] = torch.nan, torch.inf
    assert torch.equal(winograd.convolution(x, weight, None)[1:2], alone)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_convolutions_are_torchs(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.built.cache_clear()
    try:
        x = torch.randn(2, 128, 24, 24).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(128, 128, 3, 3)
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(conv2d(x, weight, None, *PLAIN), F.conv2d(x, weight, padding=1))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "winograd.c" in caplog.text
    finally:
        library.built.cache_clear()


def test_a_library_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.built.cache_clear()
    try:
        assert library.built() is not None
        (place,) = (tmp_path / "detectors").iterdir()
        before = place.stat().st_mtime_ns
        library.built.cache_clear()
        assert library.built() is not None
        assert place.stat().st_mtime_ns == before
    finally:
        library.built.cache_clear()
