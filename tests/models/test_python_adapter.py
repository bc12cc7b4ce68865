"""The adapter of a Python function, and weights in the form that codebases write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.recipe import codebases
from tests.models.test_torchvision_adapter import load_adapter, make_batch, make_job

torch = pytest.importorskip("torch")

from adapters import torch_common, torch_state  # noqa: E402

PYTHON = codebases.load_codebase(codebases.BUILTIN / "python")

MODULE = """
import torch


class Model(torch.nn.Module):
    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, num_classes, 1)
        self.scale = scale

    def forward(self, images, targets=None):
        assert all(0 <= float(image.min()) and float(image.max()) <= 1 for image in images)
        out = [self.scale * self.layer(image[None]).mean() for image in images]
        if targets is not None:
            return {"loss": sum(value * len(target["labels"]) for value, target in zip(out, targets))}
        height, width = images[0].shape[-2:]
        boxes = torch.tensor([[0.0, 0.0, width / 2, height / 2], [0.0, 0.0, 1.0, 1.0]])
        scores = torch.tensor([0.9, 0.01])
        masks = torch.ones(2, 1, height, width)
        one = {"boxes": boxes, "scores": scores, "labels": torch.tensor([1, 2]), "masks": masks}
        return [dict(one) for _ in images]


def build(num_classes, scale=1.0):
    return Model(num_classes, scale)


def wrong():
    return "no module"
"""


def job(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str = "build", **settings: Any) -> Any:
    (folder / "a_model_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    with_offer = PYTHON.model_copy(update={"models": {"faster_rcnn_r50_fpn": codebases.Offer(name="x")}})
    made = make_job("faster_rcnn_r50_fpn", with_offer, frozen_stages=None, frozen_bn=None, **settings)
    return replace(made, model={"name": f"a_model_of_mine:{function}"})


def test_module_of_the_user_trains_and_detects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch(64, 96)
    batch = replace(batch, images=np.clip(batch.images, -1.5, 2))  # as pixels are
    training = load_adapter(PYTHON)(job(tmp_path, monkeypatch, options={"arguments": {"scale": 2.0}}))
    training.prepare()
    assert training.model.scale == 2.0
    assert training.model.layer.out_channels == 3  # two classes and the background
    losses = training.forward(training.load(training.convert(batch)))
    training.backward(losses)
    training.optimizer_step()
    assert set(training.loss_values(losses)) == {"loss"}
    inference = load_adapter(PYTHON)(job(tmp_path, monkeypatch, task="infer"))
    inference.prepare()
    data = inference.load(inference.convert(batch))
    found = inference.detections(inference.postprocess(inference.network(data), data), data)
    # The files are twice as large as the images; the second box is below the threshold.
    assert [one.boxes.tolist() for one in found] == [[[0, 0, 96, 64]], [[0, 0, 96, 64]]]
    assert [one.labels.tolist() for one in found] == [[0], [0]]
    assert found[0].masks.shape == (1, 128, 192)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("wrong", "must return a torch.nn.Module"),
        ("nothing", "has no nothing"),
        ("worng", r"has no worng; did you mean wrong\?"),
        ("", "expected package.module"),
    ],
)
def test_function_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        load_adapter(PYTHON)(job(tmp_path, monkeypatch, function)).prepare()


def test_pixels_are_given_as_a_model_was_trained() -> None:
    pixels = torch.rand(1, 3, 4, 6) * 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (torch_common.MEAN, torch_common.STD))
    shared = (pixels - mean) / std
    shared[..., 2:, :] = 0
    found = torch_common.renormalised(shared, [(2, 6)], (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), bgr=True, pad=7.0)
    wanted = (pixels.flip(1) - torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)) / torch.tensor(
        [4.0, 5.0, 6.0]
    ).view(1, 3, 1, 1)
    assert torch.allclose(found[..., :2, :], wanted[..., :2, :], atol=1e-4)
    assert bool((found[..., 2:, :] == 7).all())


def test_checkpoint_as_mmengine_writes_it_is_loaded(tmp_path: Path) -> None:
    model, other = (torch.nn.Linear(3, 2) for _ in range(2))
    torch.save({"meta": {"epoch": 12}, "state_dict": other.state_dict(), "optimizer": {}}, tmp_path / "e.pth")
    torch_state.load_weights(model, str(tmp_path / "e.pth"))
    assert torch.equal(model.weight, other.weight)
    wrapped = {f"module.{name}": value + 1 for name, value in other.state_dict().items()}
    torch.save(wrapped, tmp_path / "ddp.pth")
    torch_state.load_weights(model, str(tmp_path / "ddp.pth"))
    assert torch.equal(model.weight, other.weight + 1)


def test_other_number_of_classes_is_one_clear_error(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 5).state_dict(), tmp_path / "e.pth")
    with pytest.raises(ValueError, match="another number of classes than the data set"):
        torch_state.load_weights(torch.nn.Linear(3, 2), str(tmp_path / "e.pth"))
