"""torchvision's operators in place of mmcv's compiled ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.environments import list_environments
from tests.peers.peer import Peer, relative

pytestmark = pytest.mark.peers


def test_stand_ins_equal_operators_and_others_are_missing(
    mmdet: Peer,
) -> None:
    """Forward and backward through mmcv's own modules, against autograd through torchvision's."""
    code = """
import mmcv_kernels
import torchvision
result["kernels"] = mmcv_kernels.install("stand-ins")
result["again"] = [mmcv_kernels.install(), mmcv_kernels.install("stand-ins")]
from mmcv.ops import ModulatedDeformConv2d, DeformConv2d, RoIAlign, nms
torch.manual_seed(0)

def gradients(output, *inputs):
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]

def compare(name, ours, theirs):
    result[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))

boxes = torch.rand(50, 4) * 20
boxes[:, 2:] += boxes[:, :2] + 10
scores = torch.rand(50)
dets, kept = nms(boxes, scores, 0.5)
result["nms"] = kept.tolist() == torchvision.ops.nms(boxes, scores, 0.5).tolist()

feature = torch.randn(2, 6, 16, 16, requires_grad=True)
rois = torch.cat([torch.arange(50)[:, None] % 2, boxes], 1)
for ratio, aligned in ((0, True), (2, False)):
    ours = RoIAlign(7, 0.5, ratio, aligned=aligned)(feature, rois)
    theirs = torchvision.ops.roi_align(feature, rois, 7, 0.5, ratio, aligned)
    compare(f"roi_align{ratio}", gradients(ours, feature), gradients(theirs, feature))

for bias in (True, False):
    layer = ModulatedDeformConv2d(6, 8, 3, stride=2, padding=1, deform_groups=2, bias=bias)
    offset, mask = torch.randn(2, 36, 8, 8, requires_grad=True), torch.rand(2, 18, 8, 8, requires_grad=True)
    inputs = [feature, offset, mask, *layer.parameters()]
    theirs = torchvision.ops.deform_conv2d(feature, offset, layer.weight, layer.bias, 2, 1, 1, mask)
    compare(f"dcnv2_{bias}", gradients(layer(feature, offset, mask), *inputs), gradients(theirs, *inputs))
layer = DeformConv2d(6, 8, 3, padding=2, dilation=2, groups=2)
offset = torch.randn(2, 18, 16, 16, requires_grad=True)
for inputs in ([feature, offset, layer.weight], [layer.weight]):
    theirs = torchvision.ops.deform_conv2d(feature, offset, layer.weight, None, 1, 2, 2)
    compare(f"dcnv1_{len(inputs)}", gradients(layer(feature, offset), *inputs), gradients(theirs, *inputs))
try:
    RoIAlign(7, 1.0, pool_mode="max")(feature, rois)
except NotImplementedError as error:
    result["max"] = str(error)
from mmcv.ops import carafe
masks = torch.randn(2, 2 * 9, 32, 32, requires_grad=True)
padded = torch.nn.functional.pad(feature, [1] * 4)
theirs = torch.zeros(2, 6, 32, 32)
for place in range(9):  # the definition, a place of the 3x3 neighbourhood at a time
    source = padded[:, :, place // 3 : place // 3 + 16, place % 3 : place % 3 + 16]
    weights = masks[:, [place] * 3 + [9 + place] * 3]  # two groups of three channels
    theirs = theirs + source.repeat_interleave(2, 2).repeat_interleave(2, 3) * weights
compare("carafe", gradients(carafe(feature, masks, 3, 2, 2), feature, masks), gradients(theirs, feature, masks))
from mmcv.ops import MaskedConv2d
layer = MaskedConv2d(6, 4, (3, 5), padding=(1, 2)).eval()
mask = (torch.rand(1, 16, 16) > 0.5).float()
with torch.no_grad():
    theirs = torch.nn.functional.conv2d(feature[:1], layer.weight, layer.bias, padding=(1, 2)) * mask
    compare("masked", [layer(feature[:1], mask)], [theirs])
try:
    from mmcv.ops import border_align
    border_align(torch.randn(1, 4, 4, 4), torch.rand(1, 16, 4), 2)
except NotImplementedError as error:
    result["border_align"] = str(error)
try:
    mmcv_kernels.install("compiled-ones")
except ValueError as error:
    result["unknown"] = str(error)
"""
    result, _ = mmdet.run(code, {})
    assert {result.pop("kernels"), *result.pop("again")} == {"torchvision stand-ins"}
    assert result.pop("nms")
    assert "roi_align" in result.pop("max")
    assert "border_align_forward" in result["border_align"]
    assert "bench env create mmdet --group compiled-ops" in result.pop("border_align")
    assert "none of auto, compiled, stand-ins" in result.pop("unknown")
    pairs = {
        "roi_align0",
        "roi_align2",
        "dcnv2_True",
        "dcnv2_False",
        "dcnv1_3",
        "dcnv1_1",
        "carafe",
        "masked",
    }
    assert set(result) == pairs
    assert max(result.values()) < 1e-5, result


def test_stand_ins_and_compiled_operators_compute_the_same(mmdet: Peer) -> None:
    code = """
import mmcv_kernels
result["kernels"] = mmcv_kernels.install(jobs)
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign, nms
torch.manual_seed(0)
boxes = torch.rand(200, 4) * 20
boxes[:, 2:] += boxes[:, :2] + 5
arrays["nms"] = nms(boxes, torch.rand(200), 0.5)[1].numpy()
feature = torch.randn(2, 8, 16, 16, requires_grad=True)
pooled = RoIAlign(7, 0.5, 0)(feature, torch.cat([torch.arange(200)[:, None] % 2, boxes], 1))
layer = ModulatedDeformConv2dPack(8, 8, 3, padding=1)
torch.nn.init.normal_(layer.conv_offset.weight, std=0.5)
convolved = layer(feature)
for name, output in (("pooled", pooled), ("convolved", convolved)):
    gradient = torch.autograd.grad(output.square().sum(), feature)[0]
    arrays.update({name: output.detach().numpy(), f"{name}_gradient": gradient.numpy()})
"""
    if not any(group in mmdet.codebase.environment.groups for group in _groups(mmdet.python)):
        pytest.skip("no compiled operators; bench env create mmdet --group compiled-ops")
    compiled, expected = mmdet.run(code, "compiled")
    stand_ins, arrays = mmdet.run(code, "stand-ins")
    assert (compiled["kernels"], stand_ins["kernels"]) == ("mmcv compiled", "torchvision stand-ins")
    assert np.array_equal(arrays["nms"], expected["nms"])
    assert 10 < len(arrays["nms"]) < 190
    for name in ("pooled", "convolved", "pooled_gradient", "convolved_gradient"):
        assert relative(arrays[name], expected[name]) < 1e-5


def _groups(python: Path) -> tuple[str, ...]:
    return next(env.groups for env in list_environments() if python.is_relative_to(env.folder))
