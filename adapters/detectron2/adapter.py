"""Detectron2: its model zoo's configurations, its models, its loader; README.md says what is set differently."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from adapters.torch_common import TorchAdapter, renormalised
from bench.worker.api import Batch, Description, Job

if TYPE_CHECKING:
    from d2_input import Inputs


class Adapter(TorchAdapter):
    package = "detectron2"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if source := job.options.get("source"):
            use_source(Path(source).expanduser())
        import detectron2  # only now, so that it can be another build
        from detectron2.utils.events import EventStorage

        self.version = detectron2.__version__
        self.storage = EventStorage()  # its models log to one in every step, as under its own trainer

    # -- model -----------------------------------------------------------------------------------------------

    @staticmethod
    def find_model(name: str) -> None:
        if importlib.util.find_spec("detectron2"):  # else the option `source` names it
            import d2_model

            d2_model.load_config(name)

    def build_model(self) -> nn.Module:
        import d2_model

        offered = self.job.model.get("options", {}).get("config", {})
        self.changes = {**offered, **self.job.options.get("config", {})}
        # Random weights were made for no other scale of pixels; they diverge in that of a caffe-style model.
        keeps_input = "://" in self.workload["model"] and bool(self.job.weights)
        model = d2_model.build(
            self.job.model["name"], self.changes, self.workload, len(self.job.classes), keeps_input
        )
        self.uses_masks = d2_model.uses_masks(model)
        if not self.job.weights and (self.workload["frozen_bn"] is not False or not self.job.training):
            d2_model.damp_residual_branches(model)
        return model

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        return [[]] * 5  # detectron2 freezes them itself, as the configuration told it

    def postprocess_settings(self) -> dict[str, Any]:
        import d2_model

        return d2_model.postprocess_settings(self.model, self.job.training)

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> Inputs:
        import d2_input

        data = super().convert(batch)
        if self.model.own_input:
            data = replace(data, images=renormalised(data.images, data.image_sizes, **self.model.own_input))
        return d2_input.to_inputs(data)

    def compute_losses(self, data: Inputs) -> dict[str, Tensor]:
        with self.storage:
            losses = self.model(data)
            self.storage.step()
        return losses

    def predict_raw(self, data: Inputs) -> Any:
        import d2_model

        return d2_model.predict_raw(self.model, data)

    def predict_final(self, raw: Any, data: Inputs) -> list[dict[str, Tensor]]:
        import d2_model

        return d2_model.predict_final(self.model, raw, data)

    # -- detectron2's own input ------------------------------------------------------------------------------

    def pipeline(self) -> Iterator[list[dict[str, Any]]]:
        import d2_input

        bgr = bool(self.model.own_input and self.model.own_input["bgr"])
        loader = d2_input.train_loader(self.job, with_masks=self.uses_masks, bgr=bgr)
        self.batches = (batch for batch in loader)
        return self.batches

    def load(self, data: Inputs | list[dict[str, Any]]) -> Inputs:
        """Of a batch of its own loader, detectron2 normalises and pads on the device."""
        import d2_input

        if not isinstance(data, d2_input.Inputs):
            data = d2_input.preprocess(self.model, data, self.workload["input"]["size"], self.memory_format)
        return data.to(self.device)

    def images(self, data: Inputs) -> Tensor:
        return data.images.tensor

    def objects(self, data: Inputs) -> int | None:
        return sum(len(record["instances"]) for record in data)

    def close(self) -> None:
        if hasattr(self, "batches"):
            self.batches.close()  # ends the loader processes
        super().close()

    # -- facts -----------------------------------------------------------------------------------------------

    def describe(self, data: Inputs) -> Description:
        # RetinaNet and FCOS divide by a running mean of their positives, which is no buffer: the audit's own
        # forward pass must not move it.
        normalizer = vars(self.model).get("loss_normalizer")
        description = super().describe(data)
        if normalizer is None:
            vars(self.model).pop("loss_normalizer", None)
        else:
            self.model.loss_normalizer = normalizer
        description.kernels = kernels()
        description.library["detectron2"] = self.version
        description.extra["config"] = self.changes
        description.extra["source"] = str(self.job.options.get("source", ""))
        return description


def use_source(folder: Path) -> None:
    """Import detectron2 from this folder instead of the environment's copy."""
    if not (folder / "detectron2" / "__init__.py").is_file():
        raise ValueError(f"options.source: there is no detectron2/__init__.py in {folder}")
    if "detectron2" in sys.modules:
        raise RuntimeError("detectron2 is imported already; options.source comes too late")
    sys.path.insert(0, str(folder))


def kernels() -> str:
    """Whose operators run. RoIAlign and NMS of boxes are torchvision's in either case; deformable convolutions and
    rotated boxes exist only in the compiled part."""
    if importlib.util.find_spec("detectron2._C") is None:
        return "torchvision operators; detectron2._C not loaded"
    from detectron2 import _C  # noqa: F401  (a part built for another torch fails here, and says why)

    return "compiled"
