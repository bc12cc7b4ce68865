"""Backbones trained on ImageNet, fetched by torchvision or timm."""

from __future__ import annotations

import re

from torch import Tensor

from detectors.config import ConfigError

#: What a model's name has in it → who has its backbone, and by which name there.
SOURCES = (
    (r"_r50_vd_", "timm", "resnet50d.a1_in1k"),
    (r"_r50_(fpn|dcn|c4)", "torchvision", "ResNet50_Weights.IMAGENET1K_V1"),
    (r"_r101_(fpn|c4)", "torchvision", "ResNet101_Weights.IMAGENET1K_V1"),
    (r"_x101_32x4d_", "timm", "resnext101_32x4d.gluon_in1k"),
    (r"_x101_64x4d_", "torchvision", "ResNeXt101_64X4D_Weights.IMAGENET1K_V1"),
    (r"_hrnetv2p_w18", "timm", "hrnet_w18.ms_aug_in1k"),
    (r"_hrnetv2p_w32", "timm", "hrnet_w32.ms_in1k"),
    (r"_hrnetv2p_w48", "timm", "hrnet_w48.ms_in1k"),
    (r"_vgg16", "torchvision", "VGG16_Weights.IMAGENET1K_V1"),
)


def source_of(model: str) -> tuple[str, str]:
    """The package that has a model's backbone, and its name there. Raises ConfigError where nobody is known to."""
    if found := re.search(r"_timm_(.+)_fpn$", model):
        return "timm", found[1]
    for pattern, package, name in SOURCES:
        if re.search(pattern, model):
            return package, name
    raise ConfigError(f"nobody is known to have ImageNet weights for the backbone of {model}; give a file")


def imagenet_weights(model: str) -> dict[str, Tensor]:
    """Weights of a model's backbone by name.

    Args:
        model: as in ``list_models``.

    Returns:
        Weights in the names of whoever has them, for ``load_backbone``.

    Raises:
        ConfigError: when nobody is known to have them, or they cannot be fetched.
    """
    package, name = source_of(model)
    try:
        if package == "timm":
            import timm

            return timm.create_model(name, pretrained=True).state_dict()
        from torchvision.models import get_weight

        return dict(get_weight(name).get_state_dict(progress=False))
    except Exception as error:  # each has its own errors for a network that is not there
        problem = f"cannot fetch {name} by {package} ({type(error).__name__}: {error})"
        raise ConfigError(f"{problem}; give a file instead of imagenet".replace("\n", " ")) from None
