"""Object detectors in torch.

from detectors import build
model = build("mask_rcnn_r50_fpn", num_classes=80)
losses = model.losses(images, image_sizes, targets)  # training
detections = model.postprocess(model.network(images, image_sizes), sizes, original_sizes)  # inference
"""

from detectors.ema import EMA
from detectors.initialise import calibrate
from detectors.parameter_rules import parameter_groups
from detectors.registry import build, list_models
from detectors.structures import Detections, Target

__all__ = ["EMA", "Detections", "Target", "build", "calibrate", "list_models", "parameter_groups"]
