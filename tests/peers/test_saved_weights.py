"""Files that each codebase saves in its own way, read into `detectors`: every weight is back in its place.

That a codebase with these weights detects what `detectors` does is tested beside its adapter.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import detectors
from bench.inputs.weights import source_options, to_codebase
from detectors.foreign import load_weights
from tests.peers.conftest import peer

pytestmark = [pytest.mark.peers, pytest.mark.nightly]

SAVERS = {
    ("mmdet", ".pth"): """
from mmengine.runner import save_checkpoint
save_checkpoint({"meta": {"epoch": 1}, "state_dict": adapter.model.state_dict()}, out + suffix)
""",
    ("detectron2", ".pth"): """
from detectron2.checkpoint import DetectionCheckpointer
DetectionCheckpointer(adapter.model, os.path.dirname(out)).save(os.path.basename(out))
""",
    ("detectron2", ".pkl"): """
import pickle
state = {name: value.numpy() for name, value in adapter.model.state_dict().items()}
pickle.dump({"model": state, "__author__": "nobody"}, open(out + suffix, "wb"))
""",
    ("paddledet", ".pdparams"): """
import paddle
paddle.save(adapter.model.state_dict(), out + suffix)
""",
}


@pytest.mark.parametrize(("codebase", "suffix"), SAVERS)
def test_what_a_codebase_saves_is_read(tmp_path: Path, codebase: str, suffix: str) -> None:
    other, model = peer(codebase, tmp_path), "faster_rcnn_r50_fpn"
    job = other.job(model, task="infer")
    settings = source_options(codebase, model, {})
    torch.manual_seed(0)
    ours = detectors.build(model, num_classes=len(job["classes"]), **settings)
    detectors.calibrate(ours, torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]]))
    state = {name: value.numpy() for name, value in ours.state_dict().items()}
    job["weights"] = str(tmp_path / "weights.npz")
    np.savez(job["weights"], **to_codebase(codebase, model, state))
    other.run(f"suffix = {suffix!r}\nadapter, _ = make(jobs)\n{SAVERS[codebase, suffix]}", job)

    fresh = detectors.build(model, num_classes=len(job["classes"]), **settings)
    report = load_weights(fresh, tmp_path / f"out{suffix}")
    assert report.layout == codebase
    assert report.complete, str(report)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name], rtol=1e-6, atol=1e-7)
