"""Which parameters of a model learn at another rate, or without weight decay, by definition of the model."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn


class Rule(NamedTuple):
    """Factors of learning rate and weight decay for the parameters in whose name ``pattern`` is found."""

    pattern: str
    lr: float = 1.0
    weight_decay: float = 1.0


#: Of PaddleDetection's RetinaNet (ppdet/modeling/heads/fcos_head.py, FCOSFeat): the towers' biases learn twice as fast.
PADDLE_TOWERS = (Rule(r"^head\.\w+_tower\.\d+\.bias$", lr=2.0),)


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, rules: Sequence[Rule] = ()
) -> list[dict[str, Any]]:
    """Groups of all trainable parameters for an optimizer of torch, by ``rules`` and ``model.parameter_rules`` if any.

    The first rule that fits a parameter counts. Parameters that none fits are the first group.
    """
    rules = (*rules, *getattr(model, "parameter_rules", ()))
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list, {(1.0, 1.0): []})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = next((rule for rule in rules if re.search(rule.pattern, name)), Rule(""))
            groups[rule.lr, rule.weight_decay].append(parameter)
    return [
        {"params": parameters, "lr": lr * lr_factor, "weight_decay": weight_decay * decay_factor}
        for (lr_factor, decay_factor), parameters in groups.items()
        if parameters
    ]
