"""What the documentation says is not seen, or only noted: a limit that is no longer one has to leave the list."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch import nn  # noqa: E402

from bench.worker.__main__ import Rotation  # noqa: E402
from tests.audit.in_training import set_losses  # noqa: E402
from tests.audit.sabotages import after, bfloat16  # noqa: E402
from tests.audit.small import adapter, batches, record, timed, verdict, with_closing  # noqa: E402

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("one_thread")]
Patch = Callable[[Any], None]


def _change_found(made: Any, **changes: Callable[[Any], Any]) -> None:
    def change(found: Any) -> Any:
        return [{name: changes.get(name, lambda x: x)(value) for name, value in one.items()} for one in found]

    after(made, "predict_final", change)


def fewer_detections(made: Any) -> None:
    def most(values: Any) -> Any:
        return values[: int(0.98 * len(values)) - 1]

    _change_found(made, boxes=most, scores=most, labels=most)


def half_pixels(made: Any) -> None:
    _change_found(made, boxes=lambda boxes: (2 * boxes).round() / 2)


def a_layer_rounded_by_numpy(made: Any) -> None:
    def rounded(_: Any, inputs: Any) -> Any:
        return (torch.from_numpy(inputs[0].numpy().astype(np.float16).astype(np.float32)),)

    made.model.backbone.layers[-1].register_forward_pre_hook(rounded)


def two_decimals(made: Any) -> None:
    _change_found(made, scores=lambda scores: (100 * scores).round() / 100)


def worst_first(made: Any) -> None:
    _change_found(made, **{name: lambda values: values.flip(0) for name in ("boxes", "scores", "labels")})


def fewer_candidates(made: Any) -> None:
    made.model.topk_candidates = int(0.98 * made.model.topk_candidates)


def a_term_weighs_a_little_more(made: Any) -> None:
    plain = made.compute_losses
    set_losses(made, lambda data: {name: 1.0008 * value for name, value in plain(data).items()})


def limit_that_no_gradient_reaches(made: Any) -> None:
    plain = made.optimizer_step

    def step() -> None:
        nn.utils.clip_grad_norm_(made.model.parameters(), 1e6)
        plain()

    made.optimizer_step = step


def sleeping(made: Any) -> None:
    after(made, "load", lambda data: [time.sleep(0.02), data][1])


def useless_copies(made: Any) -> None:
    after(made, "load", lambda data: [[data.images.clone() for _ in range(20)], data][1])


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("infer", fewer_detections),
        ("infer", half_pixels),
        ("infer", a_layer_rounded_by_numpy),
        ("infer", two_decimals),
        ("infer", worst_first),
        ("infer", fewer_candidates),
        ("train", a_term_weighs_a_little_more),
        ("train", limit_that_no_gradient_reaches),
        ("train", sleeping),
        ("train", useless_copies),
    ],
)
def test_limit_that_the_documentation_names(task: str, change: Patch) -> None:
    watched, made = adapter("ssd", task), adapter("ssd", task)
    change(watched)
    change(made)
    plain = with_closing(record(adapter("ssd", task), "honest"), adapter("ssd", task))
    assert verdict(with_closing(record(watched, "other"), made), plain).verdict == "equal"


def useless_products(made: Any) -> None:
    after(made, "load", lambda data: [torch.ones(512, 512) @ torch.ones(512, 512), data][1])


def test_useless_flops_are_noted() -> None:
    made = adapter("ssd", "train")
    useless_products(made)
    found = verdict(record(made, "other"), record(adapter("ssd", "train"), "honest"))
    assert (found.verdict, bool(found.notes)) == ("equal", True)


def no_decay(made: Any) -> None:
    for group in made.optimizer.param_groups:
        group["weight_decay"] = 0.0


def always_the_first_batch(made: Any) -> None:
    first: list[Any] = []
    after(made, "load", lambda data: [first.append(data), first[0]][1])


@pytest.mark.parametrize(
    ("model", "change"), [("ssd", no_decay), ("ssd", bfloat16), ("faster_rcnn", always_the_first_batch)]
)
def test_limit_of_timed_steps(model: str, change: Patch) -> None:
    plain = record(adapter(model, "train"), "honest")
    sides = []
    for one in (lambda _: None, change):
        made = adapter(model, "train")
        one(made)
        blocks = timed(made, Rotation([made.convert(batch) for batch in batches()]))
        sides.append(plain.model_copy(update={"id": str(one), "losses": blocks}))
    assert verdict(sides[1], sides[0]).verdict == "equal"
