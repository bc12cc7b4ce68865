"""Other work in timed blocks, on batches timed before, or where three steps and their weights do not show it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch import nn  # noqa: E402
from torchvision.ops import box_iou  # noqa: E402

from adapters.torch_state import ema_average  # noqa: E402
from bench.record.models import ArmRecord, Prediction  # noqa: E402
from bench.worker.__main__ import Rotation  # noqa: E402
from bench.worker.probe import predict  # noqa: E402
from tests.audit import in_details, in_inference, in_training, sabotages  # noqa: E402
from tests.audit.small import adapter, batches, put_average_off, record, timed, verdict, with_closing  # noqa: E402

Patch = Callable[[Any], None]
pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def honest(model: str, task: str) -> ArmRecord:
    return with_closing(record(adapter(model, task), "honest"), adapter(model, task))


def marked(quick: str, cases: list[Any]) -> list[Any]:
    """Cases as parameters, nightly but for those of one model."""
    return [
        pytest.param(*case, id="-".join(getattr(one, "__name__", str(one)) for one in case),
                     marks=[] if case[0] == quick else [pytest.mark.nightly])
        for case in cases
    ]  # fmt: skip


# -- only while steps are timed ---------------------------------------------------------------------------


def detecting_put_off(adapter: Any) -> None:
    """Until somebody asks for the results."""
    network, postprocess, read, due = adapter.network, adapter.postprocess, adapter.detections, []
    adapter.network = lambda data: due.append(data)
    adapter.postprocess = lambda *_: None
    adapter.detections = lambda _, data: read([postprocess(network(one), one) for one in due][-1], data)


def training_put_off(adapter: Any) -> None:
    """Until somebody looks at the weights or losses."""
    phases = adapter.forward, adapter.backward, adapter.optimizer_step, adapter.ema_update
    squares, values, due, last = adapter.squares, adapter.loss_values, [], []

    def catch_up() -> None:
        forward, *others = phases
        while due:
            last[:] = [forward(due.pop(0))]
            others[0](last[0])
            others[1]()
            others[2]()

    adapter.forward = due.append
    adapter.backward, adapter.optimizer_step, adapter.ema_update = (in_training.nothing,) * 3
    adapter.squares = lambda: [catch_up(), squares()][1]
    adapter.loss_values = lambda _: [catch_up(), values(last[0])][1]


def every_second_step_put_off(adapter: Any) -> None:
    """Until somebody looks; the other steps are taken in time."""
    phases = adapter.forward, adapter.backward, adapter.optimizer_step, adapter.ema_update
    squares, values, due, last, count = adapter.squares, adapter.loss_values, [], [], [0]

    def take(data: Any) -> None:
        forward, backward, *others = phases
        last[:] = [forward(data)]
        backward(last[0])
        for one in others:
            one()

    def catch_up() -> None:
        while due:
            take(due.pop(0))

    def forward(data: Any) -> None:
        count[0] += 1
        if count[0] % 2:
            catch_up()
            take(data)
        else:
            due.append(data)

    adapter.forward = forward
    adapter.backward, adapter.optimizer_step, adapter.ema_update = (in_training.nothing,) * 3
    adapter.squares = lambda: [catch_up(), squares()][1]
    adapter.loss_values = lambda _: [catch_up(), values(last[0])][1]


ONLY_TIMED = [
    ("ssd", "train", every_second_step_put_off),
    *((model, "train", one) for model in ("ssd", "retinanet") for one in (
        in_training.no_average, in_training.no_optimizer_step, in_training.no_backward,
        in_training.backward_of_one_term, in_details.first_image_twice, in_training.every_second_step,
        sabotages.half_resolution)),
    *((model, "train", one) for model in ("ssd", "retinanet", "faster_rcnn") for one in (training_put_off,)),
    *((model, "infer", one) for model in ("ssd", "retinanet", "faster_rcnn") for one in (detecting_put_off,)),
    *((model, "train", one) for model in ("faster_rcnn", "solov2") for one in (
        in_training.no_optimizer_step, in_training.no_backward)),
    *((model, "infer", one) for model in ("ssd", "retinanet", "faster_rcnn", "solov2") for one in (
        sabotages.random_heads, sabotages.half_resolution, sabotages.bgr, in_inference.no_postprocessing)),
    *((model, "infer", one) for model in ("ssd", "retinanet") for one in (
        in_inference.other_overlap_in_suppression, sabotages.one_pixel_smaller, sabotages.bfloat16)),
]  # fmt: skip


@pytest.mark.parametrize(("model", "task", "sabotage"), marked("ssd", ONLY_TIMED))
def test_work_that_only_timed_blocks_leave_out_is_caught(model: str, task: str, sabotage: Patch) -> None:
    made, plain = adapter(model, task), honest(model, task)
    sabotage(made)
    blocks = timed(made, Rotation([made.convert(batch) for batch in batches()]))
    again = adapter(model, task)
    same = timed(again, Rotation([again.convert(batch) for batch in batches()]))
    assert verdict(plain.model_copy(update={"id": "again", "losses": same}), plain).verdict == "equal"
    assert verdict(plain.model_copy(update={"id": "other", "losses": blocks}), plain).verdict == "unequal"


def only_every_second_step(adapter: Any) -> None:
    """The others have the results of the step before."""
    network, postprocess, seen = adapter.network, adapter.postprocess, []
    adapter.network = lambda data: network(data) if len(seen) % 2 == 0 else None

    def post(raw: Any, data: Any) -> Any:
        seen.append(seen[-1] if raw is None else postprocess(raw, data))
        return seen[-1]

    adapter.postprocess = post


def test_detections_of_any_step_of_a_block_are_seen() -> None:
    """By launch of another one."""
    plain = honest("ssd", "infer")
    verdicts = []
    for found in (0, 1):
        sides = []
        for sabotage in (sabotages.nothing, only_every_second_step):
            made = adapter("ssd", "infer")
            sabotage(made)
            blocks = timed(made, Rotation([made.convert(batch) for batch in batches()]), found)
            sides.append(plain.model_copy(update={"id": sabotage.__name__, "losses": blocks}))
        verdicts.append(verdict(sides[1], sides[0]).verdict)
    assert verdicts == ["equal", "unequal"]


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("ssd", "backbone.layers.0"),
        pytest.param("faster_rcnn", "backbone.body.layer1", marks=pytest.mark.nightly),
    ],
)
def test_part_that_timed_steps_do_not_move_is_seen(model: str, part: str) -> None:
    plain, made = honest(model, "train"), adapter(model, "train")
    made.model.get_submodule(part).requires_grad_(False)
    found = verdict(with_closing(plain, made, lambda one: one.model.requires_grad_(True)), plain)
    assert any(one.fact.startswith(f"distance that {part} went") for one in found.differences)


def test_losses_that_cancel_over_launches_are_unequal() -> None:
    plain = honest("ssd", "train")

    def launched(*factors: float) -> ArmRecord:
        losses = [
            one.model_copy(update={"launch": launch, "done": {}, "losses": {"loss": factor * one.losses["loss"]}})
            for launch, factor in enumerate(factors)
            for one in plain.losses
        ]  # fmt: skip
        return plain.model_copy(update={"id": str(factors), "losses": losses})

    assert verdict(launched(1.05, 1.0), launched(1.0, 1.0)).verdict == "equal"
    assert verdict(launched(1.3, 0.7), launched(1.0, 1.0)).verdict == "unequal"


# -- carried along by a batch, or reached later ------------------------------------------------------------


def _on_the_batch(adapter: Any, owner: Any, name: str) -> None:
    """What a method gave for a batch is given again for that batch, but for no copy of it."""
    plain, load, seen, now = getattr(owner, name), adapter.load, {}, []

    def loaded(data: Any) -> Any:
        now[:] = [data]
        return load(data)

    def remembered(*arguments: Any) -> Any:
        if id(now[0]) not in seen:
            seen[id(now[0])] = now[0], plain(*arguments)
        return seen[id(now[0])][1]

    adapter.load = loaded
    setattr(owner, name, remembered)


def predictions(adapter: Any) -> None:
    _on_the_batch(adapter, adapter, "network")


def results(adapter: Any) -> None:
    _on_the_batch(adapter, adapter, "predict_final")


def beginning(adapter: Any) -> None:
    stem = adapter.model.backbone.body.conv1
    stem.weight.requires_grad_(False)
    _on_the_batch(adapter, stem, "forward")


def anchors_of_objects(adapter: Any) -> None:
    model = adapter.model
    remembered = type("Memory", (), {"matched": staticmethod(
        lambda boxes, anchors: [
            model.proposal_matcher(box_iou(one["boxes"], other)) for one, other in zip(boxes, anchors, strict=True)
        ]
    )})()  # fmt: skip
    _on_the_batch(adapter, remembered, "matched")
    model.compute_loss = lambda targets, outputs, anchors: model.head.compute_loss(
        targets, outputs, anchors, remembered.matched(targets, anchors)
    )


def images_dimmed(adapter: Any) -> None:
    """In place: darker every time."""
    plain = adapter.load

    def load(data: Any) -> Any:
        plain(data).images.mul_(0.99)
        return data

    adapter.load = load


def other_decay_of_the_average(adapter: Any) -> None:
    """One that the first steps do not reach, since an average warms up."""
    adapter.ema.multi_avg_fn = ema_average(0.3, lambda: int(adapter.ema.n_averaged))


CARRIED = [
    ("ssd", "train", other_decay_of_the_average),
    ("ssd", "infer", predictions),
    ("ssd", "infer", results),
    ("ssd", "infer", images_dimmed),
    ("ssd", "train", images_dimmed),
    ("retinanet", "infer", predictions),
    ("retinanet", "infer", results),
    ("retinanet", "train", beginning),
    ("retinanet", "train", anchors_of_objects),
]


@pytest.mark.parametrize(("model", "task", "sabotage"), marked("ssd", CARRIED))
def test_work_that_a_batch_carries_along_is_caught(model: str, task: str, sabotage: Patch) -> None:
    watched, made = adapter(model, task), adapter(model, task)
    sabotage(watched)
    sabotage(made)
    assert verdict(with_closing(record(watched, "other"), made), honest(model, task)).verdict == "unequal"


# -- what three steps from the same weights do not show ------------------------------------------------------


def setting_in_one_phase(adapter: Any) -> None:
    phase = "forward" if adapter.job.training else "network"
    plain = getattr(adapter, phase)

    def changed(data: Any) -> Any:
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        try:
            return plain(data)
        finally:
            torch.backends.mkldnn.conv.fp32_precision = "none"

    setattr(adapter, phase, changed)


def threads_in_one_phase(adapter: Any) -> None:
    plain = adapter.backward

    def backward(losses: Any) -> None:
        torch.set_num_threads(2)
        plain(losses)
        torch.set_num_threads(1)

    adapter.backward = backward


def gradients_exchanged(adapter: Any) -> None:
    """Of the same sizes, in another place: the optimizer gets others than the backward pass made."""
    plain, draw = adapter.optimizer_step, torch.Generator().manual_seed(0)

    def step() -> None:
        for parameter in adapter.model.parameters():
            order = torch.rand(parameter.numel(), generator=draw).argsort()
            parameter.grad = parameter.grad.flatten()[order].view_as(parameter)
        plain()

    adapter.optimizer_step = step


@pytest.mark.parametrize(
    ("model", "task", "sabotage"),
    [
        ("ssd", "train", setting_in_one_phase),
        ("ssd", "infer", setting_in_one_phase),
        ("ssd", "train", threads_in_one_phase),
        ("ssd", "train", gradients_exchanged),
    ],
)
def test_hidden_change_within_a_step_is_caught(model: str, task: str, sabotage: Patch) -> None:
    made = adapter(model, task)
    sabotage(made)
    assert verdict(record(made, "other"), honest(model, task)).verdict == "unequal"


def average_put_off(adapter: Any) -> None:
    """Until somebody asks for it, which no timed step does."""
    put_average_off(adapter)


def average_in_a_thread(adapter: Any) -> None:
    plain, found, running = adapter.ema_update, adapter.averaged_model, []

    def update() -> None:
        running.append(threading.Thread(target=plain))
        running[-1].start()

    def averaged() -> Any:
        while running:
            running.pop().join()
        return found()

    adapter.ema_update = update
    adapter.averaged_model = averaged


@pytest.mark.parametrize("sabotage", [average_put_off, average_in_a_thread])
def test_average_made_elsewhere_is_not_shown(sabotage: Patch) -> None:
    made = adapter("ssd", "train")
    sabotage(made)
    found = verdict(record(made, "other"), honest("ssd", "train"))
    assert (found.verdict, found.unknown[0]) == ("not shown", "operators of the phase ema in step 1")


def buffers_not_averaged(adapter: Any) -> None:
    plain = adapter.ema.update_parameters

    def update(model: nn.Module) -> None:
        kept = {name: value.clone() for name, value in adapter.ema.module.named_buffers()}
        plain(model)
        for name, value in adapter.ema.module.named_buffers():
            value.copy_(kept[name])

    adapter.ema.update_parameters = update


def _set_momentum(adapter: Any, value: float) -> None:
    for module in adapter.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = value


def buffers_not_updated(adapter: Any) -> None:
    _set_momentum(adapter, 0.0)


def buffers_of_other_momentum(adapter: Any) -> None:
    _set_momentum(adapter, 0.01)


@pytest.mark.nightly
@pytest.mark.parametrize("sabotage", [buffers_not_averaged, buffers_not_updated, buffers_of_other_momentum])
def test_statistics_of_norm_layers_are_compared(sabotage: Patch) -> None:
    made, plain = (adapter("retinanet", "train", frozen_bn=False) for _ in range(2))
    sabotage(made)
    found = verdict(record(made, "other"), record(plain, "honest"))
    assert {"statistics" in one.fact or "that changed" in one.fact for one in found.differences} == {True}
    assert any("statistics" in one.fact for one in found.differences)


def test_predictions_of_other_work_than_is_timed_are_unequal(tmp_path: Path) -> None:
    """A model whose AP comes from other images than it is timed with."""
    plain = honest("ssd", "infer")
    sides = []
    for sabotage in (sabotages.nothing, sabotages.mirrored):
        made = adapter("ssd", "infer")
        sabotage(made)
        told = predict(made, batches(), str(tmp_path / "found.json"))
        found = Prediction(path="predictions/x.json", **told)
        sides.append(plain.model_copy(update={"id": sabotage.__name__, "predictions": found}))
    assert verdict(sides[0], sides[0]).verdict == "equal"
    assert verdict(sides[1], sides[0]).verdict == "unequal"
