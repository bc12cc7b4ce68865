"""What runs faster on a CPU than torch's own kernels, and the two of torchvision's operators that a detector needs.

The other rooms call ``conv2d``, ``linear``, ``deform_conv2d``, ``nms`` and ``crop_and_resize``, on any device. On a CPU
the first three choose kernels by what is faster; ``use("torch")`` leaves everything to torch.
"""

from detectors.cpu.convolution import conv2d
from detectors.cpu.deformable import deform_conv2d
from detectors.cpu.describe import describe
from detectors.cpu.operators import crop_and_resize, nms
from detectors.cpu.products import linear
from detectors.cpu.switch import KERNELS, chosen, use

__all__ = [
    "KERNELS",
    "chosen",
    "conv2d",
    "crop_and_resize",
    "deform_conv2d",
    "describe",
    "linear",
    "nms",
    "use",
]
