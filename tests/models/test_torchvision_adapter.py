"""The torchvision adapter, and through it what `adapters/torch_common.py` does for every torch codebase."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.recipe import codebases
from bench.worker.api import Job

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from adapters import torch_common, torch_facts, torch_state  # noqa: E402
from tests.helpers.torch_arms import (  # noqa: E402
    TORCHVISION,
    input_size,
    load_adapter,
    make_batch,
    make_job,
    predict,
    prepared,
    train_step,
)

MODELS = sorted(TORCHVISION.models)
OFTEN = ["mask_rcnn_r50_fpn", "retinanet_r50_fpn"]  # one of two stages, one of one
SOME_NIGHTLY = [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.nightly]) for name in MODELS]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model", SOME_NIGHTLY)
def test_a_training_step_learns_in_the_unfrozen_parts_only(model: str) -> None:
    adapter = prepared(model, frozen_stages=2)
    before = {name: value.clone() for name, value in adapter.model.state_dict().items()}
    values = train_step(adapter, adapter.convert(make_batch(*input_size(model))))
    assert len(values) >= 3
    assert all(np.isfinite(value) and value >= 0 for value in values.values())
    assert values["loss"] == pytest.approx(sum(v for name, v in values.items() if name != "loss"))
    frozen = {p for stage in adapter.stages()[:2] for part in stage for p in part.parameters()}
    assert frozen
    unchanged = set()
    for name, parameter in adapter.model.named_parameters():
        if parameter in frozen:
            assert not parameter.requires_grad
            unchanged.add(name)
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    after = adapter.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not moved & unchanged
    assert not any("bn" in name or "downsample.1" in name for name in moved), "batch normalisation is frozen"
    assert moved


def test_unfrozen_batch_norm_learns_except_in_frozen_stages() -> None:
    adapter = prepared("retinanet_r50_fpn", frozen_bn=False, frozen_stages=1)
    body = adapter.model.backbone.body
    train_step(adapter, adapter.convert(make_batch(96, 128)))
    assert body.bn1.num_batches_tracked == 0
    assert body.layer1[0].bn1.num_batches_tracked == 0
    assert body.layer2[0].bn1.num_batches_tracked == 1
    assert body.layer2[0].bn1.weight.grad is not None


@pytest.mark.parametrize("model", SOME_NIGHTLY)
def test_detections_are_in_pixels_of_the_original_file(model: str) -> None:
    height, width = input_size(model)
    adapter = prepared(model, task="infer", score_threshold=0.005, max_detections=20)
    found = predict(adapter, make_batch(height, width))
    assert [one.image_id for one in found] == [11, 12]
    for one, (rows, columns) in zip(
        found, [(2 * height, 2 * width), (2 * (height - 16), 2 * width)], strict=True
    ):
        assert 0 < len(one.boxes) <= 20
        assert one.boxes.shape == (len(one.scores), 4)
        assert set(one.labels.tolist()) <= {0, 1}
        assert (one.scores >= 0.005).all()
        assert one.boxes.min() >= 0
        assert (one.boxes <= [columns, rows, columns, rows]).all()
        assert one.boxes[:, 2].max() > width, "boxes reach beyond the size of the input"
        if model == "mask_rcnn_r50_fpn":
            assert one.masks.shape == (len(one.boxes), rows, columns)
            assert one.masks.dtype == bool
        else:
            assert one.masks is None


def test_padding_does_not_change_what_torchvision_itself_would_find() -> None:
    """The same image, unpadded, through torchvision's own transform and forward."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    adapter = prepared("retinanet_r50_fpn", task="infer", score_threshold=0.005, frozen_bn=False)
    batch = make_batch(96, 128)
    ours = predict(adapter, batch)[0]
    theirs = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, score_thresh=0.005, detections_per_img=100,
        min_size=96, max_size=128, image_mean=[0, 0, 0], image_std=[1, 1, 1],
    ).eval()  # fmt: skip
    theirs.load_state_dict(adapter.model.state_dict())
    with torch.inference_mode():
        reference = theirs([torch.from_numpy(batch.images[0])])[0]
    assert len(reference["boxes"]) > 10
    # Scores that differ in the last bit may stand in either order, so every detection looks for its own.
    boxes, labels = 2 * reference["boxes"].numpy(), reference["labels"].numpy()
    away = np.abs(ours.boxes[:, None] - boxes).max(axis=-1) + 1000.0 * (ours.labels[:, None] != labels)
    its = away.argmin(axis=1)
    assert sorted(its) == list(range(len(boxes)))
    assert away.min(axis=1).max() < 1e-3
    np.testing.assert_allclose(ours.scores, reference["scores"].numpy()[its], atol=1e-6)


def test_frozen_batch_norm_computes_what_batch_norm_does_in_inference(tmp_path: Path) -> None:
    open_bn = prepared("fcos_r50_fpn", task="infer", frozen_bn=False, score_threshold=0.005)
    for name, buffer in open_bn.model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    open_bn.save_weights(str(tmp_path / "weights.npz"))
    frozen = prepared(
        "fcos_r50_fpn", task="infer", weights=str(tmp_path / "weights.npz"), score_threshold=0.005
    )
    batch = make_batch(96, 128)
    for one, other in zip(predict(open_bn, batch), predict(frozen, batch), strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


def test_the_moving_average_equals_a_plain_loop_over_the_weights() -> None:
    adapter = prepared("retinanet_r50_fpn", ema=True, ema_decay=0.5, frozen_bn=False, optimizer={"lr": 1e-2})
    data = adapter.convert(make_batch(96, 128))
    names = ["head.classification_head.cls_logits.weight", "backbone.body.layer4.2.bn3.running_var"]
    expected: dict[str, Any] = {}
    for update in range(4):
        train_step(adapter, data)
        adapter.ema_update()
        decay = min(0.5, (1 + update) / (10 + update)) if update else 0.0
        state = adapter.model.state_dict()
        for name in names:
            expected[name] = decay * expected.get(name, 0.0) + (1 - decay) * state[name].double()
    averaged = adapter.ema.module.state_dict()
    for name in names:
        torch.testing.assert_close(averaged[name].double(), expected[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(averaged[name], state[name])
    assert averaged["backbone.body.layer4.2.bn3.num_batches_tracked"] == 4


def test_saved_weights_give_the_same_detections_when_loaded(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.npz")
    settings: dict[str, Any] = {"task": "infer", "score_threshold": 0.01}
    first = prepared("fcos_r50_fpn", **settings, seed=1)
    first.save_weights(path)
    second = prepared("fcos_r50_fpn", **settings, seed=2, weights=path)
    batch = make_batch(96, 128)
    for one, other in zip(predict(first, batch), predict(second, batch), strict=True):
        assert len(one.boxes)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    path = tmp_path / "weights.npz"
    np.savez(path, **{"0.weight": np.zeros((4, 3, 1, 1), np.float32), "1.weight": np.zeros(1)})
    with pytest.raises(ValueError, match=r"missing 1: 0\.bias.*unexpected 1: 1\.weight.*shape 1: 0\.weight"):
        torch_state.load_weights(model, str(path))


def test_a_training_arm_predicts_with_its_averaged_weights() -> None:
    adapter = prepared("retinanet_r50_fpn", ema=True, frozen_bn=False, score_threshold=0.001)
    batch = make_batch(96, 128)
    data = adapter.convert(batch)
    train_step(adapter, data)
    adapter.ema_update()
    flags = [module.training for module in adapter.model.modules()]
    before = predict(adapter, batch)
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.zero_()  # not what the average holds
    after = predict(adapter, batch)
    np.testing.assert_array_equal(before[0].scores, after[0].scores)
    assert [module.training for module in adapter.model.modules()] == flags
    assert np.isfinite(train_step(adapter, data)["loss"])


def test_the_description_counts_what_the_model_has() -> None:
    adapter = prepared(
        "faster_rcnn_r50_fpn", frozen_stages=2, frozen_bn=False, max_detections=7, score_threshold=0.25
    )
    model = adapter.model
    data = adapter.convert(make_batch(96, 128))
    state, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random_numbers = torch.get_rng_state()
    facts = adapter.describe(data)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.trainable_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert facts.parameters_by_module["rpn.head"] == sum(p.numel() for p in model.rpn.head.parameters())
    assert sum(facts.parameters_by_module.values()) == facts.parameters
    assert sum(facts.trainable_by_module.values()) == facts.trainable_parameters < facts.parameters
    assert (facts.input_shape, facts.input_dtype, facts.input_layout) == ([2, 3, 96, 128], "float32", "NCHW")
    assert facts.postprocess["score_threshold"] == 0.25
    assert facts.postprocess["max_detections"] == 7
    assert facts.postprocess["proposals"] == 2000, "what torchvision keeps while training"
    train_step(adapter, data)
    kept = sum(v.numel() for s in adapter.optimizer.state.values() for v in s.values() if v is not None)
    assert facts.optimizer["state_values"] == kept


def test_flops_are_twice_the_multiply_adds() -> None:
    from torch import nn
    from torchvision.ops import DeformConv2d

    image = torch.zeros(2, 4, 10, 12)
    offsets = torch.zeros(2, 18, 10, 12)
    cases = [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (image,), 2 * 6 * 10 * 12 * (4 // 2) * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (image,), 2 * 10 * 12 * 4 * 6 * 4),
        (nn.Linear(12, 5), (image,), 2 * 4 * 10 * 12 * 5),
        (DeformConv2d(4, 6, 3, padding=1), (image, offsets), 2 * 6 * 10 * 12 * 4 * 9),
    ]
    for layer, inputs, multiply_adds in cases:
        with torch_facts.flop_counter() as counter, torch.no_grad():
            nn.Sequential(nn.BatchNorm2d(4), layer)(*inputs) if len(inputs) == 1 else layer(*inputs)
        assert counter.get_total_flops() == 2 * multiply_adds, "normalisation is not counted"


def test_flops_of_attention_are_those_of_its_products() -> None:
    query, key, value = (torch.randn(2, 4, tokens, 8, requires_grad=True) for tokens in (10, 6, 6))
    with torch_facts.flop_counter() as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    forward = 2 * (2 * 4 * 10 * 6 * 8) * 2
    assert counter.get_total_flops() == forward
    with torch_facts.flop_counter() as counter:
        attended.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_options_change_how_it_runs_and_not_what_it_computes() -> None:
    batch = make_batch(96, 128)
    plain = prepared("retinanet_r50_fpn")
    nhwc = prepared("retinanet_r50_fpn", options={"channels_last": True})
    facts = nhwc.describe(nhwc.convert(batch))
    assert facts.input_layout == "NHWC"
    assert nhwc.model.head.classification_head.cls_logits.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    first, second = train_step(plain, plain.convert(batch)), train_step(nhwc, nhwc.convert(batch))
    assert first == pytest.approx(second, rel=1e-4)


def test_switches_of_cuda_are_set_as_asked() -> None:
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        for on in (True, False):
            prepared("fcos_r50_fpn", options={"tf32": on, "cudnn_benchmark": on})
            assert (products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (on, on, on)
    finally:
        products.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def test_lower_precision_still_trains_and_predicts() -> None:
    batch = make_batch(96, 128)
    adapter = prepared("fcos_r50_fpn", precision="bfloat16", score_threshold=0.001)
    exact = prepared("fcos_r50_fpn")
    low, full = (train_step(one, one.convert(batch))["loss"] for one in (adapter, exact))
    assert low == pytest.approx(full, rel=0.05)
    assert low != full
    assert len(predict(adapter, batch)[0].boxes)


def test_float64_is_the_same_work_with_more_digits() -> None:
    batch = make_batch(96, 128)
    single = prepared("fcos_r50_fpn")
    state = copy.deepcopy(single.model.state_dict())
    single_loss = train_step(single, single.convert(batch))["loss"]
    try:
        double = prepared("fcos_r50_fpn", precision="float64")
        double.model.load_state_dict(state)
        loss = train_step(double, double.convert(batch))["loss"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {one.dtype for one in double.model.parameters()} == {torch.float64}
    assert loss == pytest.approx(single_loss, rel=1e-4)
    assert loss != single_loss


class OneWeight(torch_common.TorchAdapter):
    """A model of one weight; `factor` is a hundred times its gradient."""

    factor = 1e-7

    def build_model(self) -> Any:
        return torch.nn.Linear(1, 1, bias=False)

    def compute_losses(self, data: Any) -> dict[str, Any]:
        return {"loss_a": (self.model(data) * self.factor).float().sum() / 100}

    def load(self, data: Any) -> Any:
        return data


def test_small_float16_gradients_survive_and_an_overflow_skips_the_step() -> None:
    settings = {"precision": "float16", "frozen_stages": 0, "optimizer": {"lr": 1.0, "weight_decay": 0.0}}
    adapter = OneWeight(make_job("fcos_r50_fpn", **settings))
    adapter.prepare()
    torch.nn.init.zeros_(adapter.model.weight)
    train_step(adapter, torch.ones(1, 1))
    moved = adapter.model.weight.item()
    assert moved == pytest.approx(-1e-9, rel=0.1), "float16 ends at 6e-8"
    adapter.factor = float("inf")
    train_step(adapter, torch.ones(1, 1))
    assert adapter.model.weight.item() == moved


RANK = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
from bench.worker.api import Job
from tests.helpers.torch_arms import make_job, train_step
from test_torchvision_adapter import OneWeight
rank, settings = int(sys.argv[3]), {"frozen_stages": 0, "ranks": 2, "optimizer": {"lr": 1.0, "weight_decay": 0.0}}
adapter = OneWeight(Job(**{**vars(make_job("fcos_r50_fpn", **settings)), "rank": rank, "world_size": 2}))
adapter.factor = 100.0
adapter.prepare()
start = adapter.model.weight.item()
values = train_step(adapter, torch.full((1, 1), float(1 + 2 * rank)))
after = adapter.model.weight.item()
with adapter.unaveraged():
    adapter.backward(adapter.forward(torch.full((1, 1), float(1 + 2 * rank))))
print(start, after, values["loss"], adapter.model.weight.grad.item())
adapter.close()
"""


def test_two_ranks_average_their_gradients_and_keep_their_own_losses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(codebases.BUILTIN.parent), str(Path(__file__).parent)]
    variables = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *paths, str(rank)],
            env={**os.environ, **variables, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    (start, first, loss, own), (other_start, second, other_loss, other) = (
        map(float, text.split()) for text in outputs
    )
    assert start == other_start
    assert first == second == pytest.approx(start - (1 + 3) / 2)
    assert [loss, other_loss] == pytest.approx([start, 3 * start])
    assert [own, other] == pytest.approx([1, 3]), "without averaging"


def test_ssd_at_another_size_than_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="300x300"):
        prepared("ssd300_vgg16", input={"size": (320, 320)})


def test_frozen_stages_of_an_unknown_backbone_are_refused() -> None:
    job = make_job("faster_rcnn_r50_fpn")
    unknown = {"name": "fasterrcnn_mobilenet_v3_large_320_fpn"}
    adapter = load_adapter(TORCHVISION)(Job(**{**vars(job), "model": unknown}))
    with pytest.raises(ValueError, match="frozen_stages: 0"):
        adapter.prepare()


def test_name_of_no_detector_has_a_hint() -> None:
    misspelt = Job(**{**vars(make_job("faster_rcnn_r50_fpn")), "model": {"name": "fasterrcn_resnet50_fpn"}})
    with pytest.raises(ValueError, match=r"no detector .* did you mean fasterrcnn_resnet50_fpn"):
        load_adapter(TORCHVISION)(misspelt).prepare()
