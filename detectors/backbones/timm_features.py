"""Backbones of timm by its ``features_only``: ResNet-18 to 152, ConvNeXt, Swin, MobileNet, EfficientNet and others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)


class TimmFeatures(nn.Module):
    """Maps of strides 4, 8, 16 and 32 of a model of timm, with random weights.

    Args:
        name: timm's.
        frozen_stages: stages that do not learn; 1 is the stem and the first.
        frozen_bn: whether batch normalisation is constant.

    Raises:
        ImportError: without timm.
        ValueError: for a name that timm does not know, a model without these strides, or stages that cannot be frozen.
    """

    def __init__(self, name: str, *, frozen_stages: int = 0, frozen_bn: bool = False) -> None:
        super().__init__()
        try:
            import timm
            from timm.layers import freeze_batch_norm_2d
        except ImportError:
            raise ImportError("backbones of timm need it: pip install timm") from None
        settings = {"strict_img_size": False} if name.startswith("swin") else {}
        try:
            body = timm.create_model(name, pretrained=False, features_only=True, **settings)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"timm has no pyramid of {name!r}: {str(error).splitlines()[0]}") from None
        places = {stride: place for place, stride in enumerate(body.feature_info.reduction())}
        if missing := set(STRIDES) - set(places):
            raise ValueError(f"{name} has no maps of strides {sorted(missing)}")
        self.chosen = [places[stride] for stride in STRIDES]
        self.out_channels: Sequence[int] = [body.feature_info.channels()[place] for place in self.chosen]
        self.channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")
        self.body = freeze_batch_norm_2d(body) if frozen_bn else body
        self.frozen = self._stages(name, frozen_stages)
        for module in self.frozen:
            module.requires_grad_(False)

    def _stages(self, name: str, count: int) -> list[nn.Module]:
        """The first modules, up to the stage ``count``."""
        if count <= 0:
            return []
        last = self.body.feature_info.module_name()[self.chosen[min(count, 4) - 1]].replace(".", "_")
        names = [key for key, _ in self.body.named_children()]
        if last not in names:
            raise ValueError(f"stages of {name} cannot be frozen one by one; set frozen_stages: 0")
        return [module for _, module in list(self.body.named_children())[: names.index(last) + 1]]

    def train(self, mode: bool = True) -> TimmFeatures:
        """Frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to four maps [B, C_i, H / stride, W / stride]."""
        found = self.body(images)
        maps = [found[place] for place in self.chosen]
        return [one.permute(0, 3, 1, 2) for one in maps] if self.channels_last else maps
