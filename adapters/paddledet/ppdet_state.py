"""What a ppdet model starts from and goes on from: weights, frozen stages, random numbers, the state of training."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import paddle
from ppdet.modeling.backbones.hrnet import HRNet
from ppdet.modeling.backbones.resnet import BottleNeck
from ppdet.modeling.backbones.vgg import VGG


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)


def damp_residual_branches(model: Any) -> None:
    """For random weights without batch statistics, where each of the 16 blocks would double the variance until
    training ends in NaN: a factor of 1/4 on every residual branch keeps the scale (as in adapters/torchvision)."""
    for layer in model.sublayers():
        if isinstance(layer, BottleNeck):
            layer.branch2c.norm.weight.set_value(paddle.full_like(layer.branch2c.norm.weight, 0.25))


def freeze_stages(backbone: Any, count: int | None) -> None:
    """No gradient in the first stages of VGG and HRNet, which have no setting for it as ppdet's ResNet has."""
    if isinstance(backbone, VGG):
        stages = [[getattr(backbone, f"conv_block_{index}")] for index in range(5)]
    elif isinstance(backbone, HRNet):
        stages = [[backbone.conv_layer1_1, backbone.conv_layer1_2, backbone.la1], [backbone.tr1, backbone.st2],
                  [backbone.tr2, backbone.st3], [backbone.tr3, backbone.st4]]  # fmt: skip
    else:
        return
    for layer in (layer for stage in stages[: max(count or 0, 0)] for layer in stage):
        for parameter in layer.parameters():
            parameter.stop_gradient = True


def round_anchors(model: Any) -> None:
    """Whole pixels, as torchvision's anchors have them. Raises ValueError for a model without an RPN."""
    if not hasattr(model, "rpn_head"):
        raise ValueError(f"option rounded_anchors: {type(model).__name__} has no RPN")
    generator = model.rpn_head.anchor_generator
    generator.cell_anchors = [paddle.round(anchors) for anchors in generator.cell_anchors]


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays and plain values of a `.pdparams`; another global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer", "encode", "OrderedDict")
        if module.partition(".")[0] in ("numpy", "_codecs", "collections") and name in arrays:
            return super().find_class(module, name)
        raise ValueError(f"a file of weights holds {module}.{name}, which could run code; it is not read")


def read_weights(path: str) -> dict[str, Any]:
    """Arrays by name."""
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    with open(path, "rb") as file:
        content = _ArraysOnly(file).load()
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def load_weights(model: Any, path: str) -> None:
    """Load an ``.npz`` or a ``.pdparams`` by name, strictly: every name and shape has to agree.

    Raises:
        ValueError: Names those that do not.
    """
    state = model.state_dict()
    given = read_weights(path)
    problems = [
        f"{kind} {len(names)}: {', '.join(sorted(names)[:8])}{', …' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", set(state) - set(given)),
            ("unexpected", set(given) - set(state)),
            (
                "of another shape",
                {n for n in set(state) & set(given) if tuple(state[n].shape) != given[n].shape},
            ),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: " + "; ".join(problems))
    for name, value in state.items():
        value.set_value(given[name].astype(value.numpy().dtype))


def save_state(path: str, model: Any, optimizer: Any, ema: Any) -> None:
    """Paddle's generator cannot be written without a pickle, so it is seeded anew, here as after `load_state`."""
    arrays = {f"model/{name}": value.numpy() for name, value in model.state_dict().items()}
    momentum = optimizer.state_dict()
    for place, name in enumerate(momentum_names(model)):
        if name in momentum:
            arrays[f"velocity/{place}"] = momentum[name].numpy()
    if ema is not None:
        arrays |= {f"ema/{name}": value.numpy() for name, value in ema.state_dict.items()}
        arrays["ema_step"] = np.array(ema.step)
    version, words, gauss = random.getstate()
    arrays["python"] = np.array(words, np.int64)
    _, keys, *place_and_gauss = np.random.get_state()
    arrays |= {"numpy_keys": keys, "numpy_rest": np.array(place_and_gauss, np.float64)}
    arrays["python_rest"] = np.array([version, np.nan if gauss is None else gauss], np.float64)
    seed = random.getrandbits(31)
    arrays["seed"] = np.array(seed)
    paddle.seed(seed)
    random.setstate((version, words, gauss))
    with open(path, "wb") as file:  # a name would get the suffix .npz
        np.savez(file, **arrays)


def load_state(path: str, model: Any, optimizer: Any, ema: Any) -> None:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name, value in model.state_dict().items():
        value.set_value(arrays[f"model/{name}"])
    held, momentum = optimizer.state_dict(), {}
    for place, name in enumerate(momentum_names(model)):
        if f"velocity/{place}" in arrays:
            momentum[name] = paddle.to_tensor(arrays[f"velocity/{place}"])
        elif name in held:  # of steps since then
            momentum[name] = paddle.zeros_like(held[name])
    optimizer.set_state_dict(momentum)  # which uses it when the first step makes its accumulators
    if ema is not None:
        averaged = {
            name: paddle.to_tensor(arrays[f"ema/{name}"], place=value.place)
            for name, value in ema.state_dict.items()
        }
        ema.resume(averaged, step=int(arrays["ema_step"]))
        ema._decay = min(ema.decay, ema.step / (9 + ema.step))  # of the last update
    version, gauss = arrays["python_rest"].tolist()
    random.setstate((int(version), tuple(arrays["python"].tolist()), None if gauss != gauss else gauss))
    place, has_gauss, cached = arrays["numpy_rest"].tolist()
    np.random.set_state(("MT19937", arrays["numpy_keys"], int(place), int(has_gauss), cached))
    paddle.seed(int(arrays["seed"]))


def momentum_names(model: Any) -> list[str]:
    """What the optimizer calls its values, parameter by parameter."""
    trained = (p for p in model.parameters() if p.trainable and not p.stop_gradient)
    return [f"{parameter.name}_velocity_0" for parameter in trained]
