"""SOLOv2 against PaddleDetection 2.6 (ppdet/modeling/heads/solov2_head.py, losses/solov2_loss.py and backbones/
resnet.py; targets of data/transform/batch_operators.py), given the same weights and images."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detectors
from bench.environments import python_of
from bench.inputs.weights import to_codebase
from bench.measure.process import worker_path
from bench.recipe.workload import Input
from bench.worker.batches import load_batches
from detectors.solov2 import SOLOv2
from tests.peers.peer import assert_gradients, assert_solov2_agrees
from tests.peers.ppdet import DEADLINE_S, PADDLEDET, Bench, workload

pytestmark = pytest.mark.peers

SIZE = (128, 128)

WHAT_PPDET_COMPUTES = """
import json, sys
import numpy as np
from bench.worker.__main__ import load_module
from bench.worker.api import Job
from bench.worker.batches import load_batches

module = load_module(sys.argv[1])
adapter = module.Adapter(Job(**json.load(open(sys.argv[2]))))
adapter.prepare()
(batch,) = load_batches(adapter.job.batches, 0, 1)
data = adapter.load(adapter.convert(batch))
arrays, model = {}, adapter.model

def keep_gradients(prefix):
    for name, value in model.state_dict().items():  # some parameters have two names there, and here
        if value.grad is not None:
            arrays[prefix + name] = value.grad.numpy()

def keep_head(layer, inputs, outputs):
    for level, (classes, kernels) in enumerate(zip(*outputs)):
        arrays[f"classes{level}"], arrays[f"kernels{level}"] = classes.numpy(), kernels.numpy()

hooks = [
    model.solov2_head.register_forward_post_hook(keep_head),
    model.mask_head.register_forward_post_hook(lambda _, __, out: arrays.update(features=out.numpy())),
]
losses = adapter.forward(data)
for hook in hooks:
    hook.remove()
for name, value in adapter.loss_values(losses).items():
    arrays[f"loss {name}"] = np.array(value)
adapter.backward(losses)
keep_gradients("gradient of ")

module.load_weights(model, adapter.job.weights)  # running statistics as before that step
for found in adapter.detections(adapter.postprocess(adapter.network(data), data), data):
    for name in ("scores", "labels", "masks"):
        arrays[f"{name} of {found.image_id}"] = getattr(found, name)

# ppdet names float32 in a few of its calls.
import paddle

def in_float64(call):
    def exact(*arguments, **keywords):
        dtype = lambda value: "float64" if isinstance(value, str) and value == "float32" else value
        return call(*map(dtype, arguments), **{key: dtype(value) for key, value in keywords.items()})
    return exact

for name in ("cast", "linspace", "zeros"):
    setattr(paddle, name, in_float64(getattr(paddle, name)))
functional = paddle.nn.functional
focal = functional.sigmoid_focal_loss
functional.sigmoid_focal_loss = lambda logit, label, normalizer, **settings: focal(
    logit, label.astype("float64"), normalizer.astype("float64"), **settings)
model.to(dtype="float64")
data.inputs["image"] = data.inputs["image"].astype("float64")
adapter.backward(adapter.forward(data))
keep_gradients("exact gradient of ")
np.savez(sys.argv[3], **arrays)
"""


def run_ppdet(bench: Bench, job: dict[str, Any]) -> dict[str, np.ndarray]:
    job_file, result = bench.folder / "job.json", bench.folder / "result.npz"
    job_file.write_text(json.dumps(job))
    done = subprocess.run(
        [
            python_of(PADDLEDET),
            "-W",
            "ignore",
            "-c",
            WHAT_PPDET_COMPUTES,
            PADDLEDET.adapter_file,
            job_file,
            result,
        ],
        env={"PYTHONPATH": str(worker_path(bench.folder / "path")), "OMP_NUM_THREADS": "1"},
        timeout=DEADLINE_S,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    with np.load(result) as arrays:
        return dict(arrays)


def calibrated(name: str, job: dict[str, Any], weights: Path, **settings: Any) -> SOLOv2:
    """Our model, and its weights as a file for PaddleDetection."""
    (batch,) = load_batches(job["batches"], 0, 1)
    torch.manual_seed(3)
    model = detectors.build(name, num_classes=len(job["classes"]), score_threshold=0.01, **settings)
    detectors.calibrate(model, torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    np.savez(weights, **to_codebase("paddledet", name, state))
    return model


VD_DCN = "solov2_light_r50_vd_fpn_dcn_512"
#: DropBlock's random numbers are each framework's own.
NO_DROP_BLOCK = {"SOLOv2Head": {"drop_block": False}}


@pytest.mark.parametrize(
    ("name", "frozen", "settings", "config"),
    [
        pytest.param(
            *("solov2_light_r50_fpn", True, {"conventions": "paddledet"}, {}), marks=pytest.mark.nightly
        ),
        pytest.param(
            *(VD_DCN, True, {"frozen_stages": 1, "frozen_bn": True}, NO_DROP_BLOCK), marks=pytest.mark.nightly
        ),
        (VD_DCN, False, {}, NO_DROP_BLOCK),
    ],
    ids=["light", "vd-dcn-frozen", "vd-dcn"],
)
def test_with_one_set_of_weights_solov2_is_paddledetections(
    bench: Bench,
    name: str,
    frozen: bool,
    settings: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Gradients are compared in float64 too, closely. In float32 statistics of 32 values, as the last stage has here
    without frozen normalisation, enlarge rounding errors a thousand times, and rounding decides on which side of a
    ReLU's corner or of a mask's threshold a value lies."""
    fields = {"frozen_stages": int(frozen), "frozen_bn": frozen, "batch_size": 2, "score_threshold": 0.01}
    task = workload(name, input=Input(images=2, size=SIZE), **fields)
    job = bench.job(task, PADDLEDET, options={"config": config}, weights=str(bench.folder / "weights.npz"))
    model = calibrated(name, job, bench.folder / "weights.npz", **settings)
    if model.head.drop_block is not None:
        model.head.drop_block.keep = 1.0
    start = {key: value.clone() for key, value in model.state_dict().items()}
    theirs = run_ppdet(bench, job)

    (batch,) = load_batches(job["batches"], 0, 1)
    images, sizes, targets = assert_solov2_agrees(model, batch, theirs)
    losses = model.losses(images, sizes, targets)
    for term, theirs_term in (("loss_mask", "loss_ins"), ("loss_cls", "loss_cate")):
        assert losses[term].item() == pytest.approx(float(theirs[f"loss {theirs_term}"]), rel=1e-3)
        assert losses[term].item() > 0
    sum(losses.values()).backward()
    assert_gradients(model, "paddledet", name, theirs, "gradient of ", 2e-2)

    model.load_state_dict(start)
    model.eval()
    with torch.no_grad():
        raw = model.network(images, sizes)
    found = model.postprocess(raw, batch.image_sizes.tolist(), batch.original_sizes.tolist())
    for image_id, mine in zip(batch.image_ids, found, strict=True):
        assert len(mine.scores) > 10
        # A score is a mean over the pixels above one half: one that rounding puts on the other side changes it.
        apart = np.abs(mine.scores.numpy() / theirs[f"scores of {image_id}"] - 1)
        assert (apart < 1e-3).mean() > 0.95
        assert apart.max() < 2e-2
        assert np.array_equal(mine.labels.numpy(), theirs[f"labels of {image_id}"])
        assert (mine.masks.numpy() != theirs[f"masks of {image_id}"]).mean() < 1e-4

    model.double().train()
    model.load_state_dict(start)
    model.zero_grad()
    sum(model.losses(images.double(), sizes, targets).values()).backward()
    assert_gradients(model, "paddledet", name, theirs, "exact gradient of ", 1e-5)
