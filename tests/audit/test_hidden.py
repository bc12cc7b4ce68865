"""Work where nobody looks: behind a decoy, before the clock starts, where weights are held, in later images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from bench.judge.observations import summary  # noqa: E402
from bench.judge.steps import images  # noqa: E402
from bench.record.models import ArmRecord, Prediction  # noqa: E402
from bench.worker.__main__ import Rotation  # noqa: E402
from bench.worker.audit import keep, look  # noqa: E402
from bench.worker.probe import predict  # noqa: E402
from bench.worker.sink import Projection, Sink  # noqa: E402
from tests.audit import sabotages  # noqa: E402
from tests.audit.small import adapter, batches, put_average_off, record, timed, verdict  # noqa: E402

Patch = Callable[[Any], None]
pytestmark = pytest.mark.usefixtures("one_thread")


def decoy() -> None:
    torch.zeros(1).add_(1)


def average_put_off(made: Any) -> None:
    """Until somebody asks for it."""
    put_average_off(made, meanwhile=decoy)


def weights_put_off(made: Any) -> None:
    """Until the next step, or until somebody asks for them."""
    plain, forward, average, state, due = (
        made.optimizer_step, made.forward, made.ema_update, made.model.state_dict, []
    )  # fmt: skip

    def first(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            while due:
                due.pop()
                plain()
            return call(*arguments, **settings)

        return run

    made.optimizer_step = lambda: [decoy(), due.append(1)]
    made.forward, made.ema_update, made.model.state_dict = map(first, (forward, average, state))


@pytest.mark.parametrize(("sabotage", "phase"), [(average_put_off, "ema"), (weights_put_off, "optimizer")])
def test_phase_with_a_decoy_is_not_shown(sabotage: Patch, phase: str) -> None:
    made = adapter("ssd")
    sabotage(made)
    found = verdict(record(made, "other"), record(adapter("ssd"), "honest"))
    assert (found.verdict, found.unknown[0]) == ("not shown", f"operators of the phase {phase} in step 1")


# -- before the clock starts -----------------------------------------------------------------------------


def made_before_the_clock_starts(made: Any) -> None:
    network, postprocess, convert, known, kept = made.network, made.postprocess, made.convert, [], {}
    timing = [False]

    def synchronize() -> None:
        timing[0] = not timing[0]
        kept.update({id(one): postprocess(network(one), one) for one in known[-3:] if timing[0]})

    made.convert = lambda batch: [known.append(convert(batch)), known[-1]][1]
    made.load, made.synchronize = lambda data: data, synchronize
    made.network = lambda data: torch.zeros(1) if timing[0] else network(data)
    made.postprocess = lambda raw, data: kept[id(data)] if timing[0] else postprocess(raw, data)


def test_work_before_the_clock_is_seen() -> None:
    sides = []
    for one in (sabotages.nothing, sabotages.nothing, made_before_the_clock_starts):
        made = adapter("ssd", "infer")
        one(made)
        blocks = timed(made, Rotation([made.convert(batch) for batch in batches()]))
        sides.append(record(adapter("ssd", "infer"), one.__name__).model_copy(update={"losses": blocks}))
    assert verdict(sides[1], sides[0]).verdict == "equal"
    assert any("right before a timed block" in one.fact for one in verdict(sides[2], sides[0]).differences)


# -- where weights are held ------------------------------------------------------------------------------


def no_average_of_weights_that_are_held(made: Any) -> None:
    plain = made.ema_update
    made.ema_update = lambda: plain() if made.optimizer.param_groups[0]["lr"] else None


def no_update_of_weights_that_are_held(made: Any) -> None:
    plain = made.optimizer_step

    def step() -> None:
        if made.optimizer.param_groups[0]["lr"]:
            plain()
            return
        for weight, state in made.optimizer.state.items():
            state["momentum_buffer"].mul_(0.9).add_(weight.grad).add_(weight.detach(), alpha=1e-4)

    made.optimizer_step = step


def held(one: ArmRecord, made: Any) -> ArmRecord:
    """The record of an arm that was timed with learning rate 0, and watched once more."""
    with tempfile.TemporaryDirectory() as folder:
        keep(made, f"{folder}/state")
        made.scale_learning_rate(0.0)
        source = Rotation([made.convert(batch) for batch in batches()])
        blocks = timed(made, source)
        closing = [summary(look(made, batches(), f"{folder}/state", source), None)]
    return one.model_copy(update={"losses": blocks, "audit": {**one.audit, "closing": closing}})


@pytest.mark.nightly
def test_work_left_out_where_weights_are_held_is_seen() -> None:
    plain = record(adapter("ssd"), "honest")
    verdicts = []
    for sabotage in (
        sabotages.nothing, no_average_of_weights_that_are_held, no_update_of_weights_that_are_held
    ):  # fmt: skip
        made = adapter("ssd")
        sabotage(made)
        verdicts.append(verdict(held(plain, made), held(plain, adapter("ssd"))).verdict)
    assert verdicts == ["equal", "unequal", "unequal"]


# -- in later images -------------------------------------------------------------------------------------


def nothing_found_after_two_images(made: Any) -> None:
    plain, taken = made.predict_final, [0]

    def final(raw: Any, data: Any) -> Any:
        taken[0] += 1
        found = plain(raw, data)
        return [{name: value[: len(value) * (taken[0] < 2)] for name, value in one.items()} for one in found]

    made.predict_final = final


def others_found_after_two_images(made: Any) -> None:
    plain, taken = made.predict_raw, [0]

    def raw(data: Any) -> Any:
        taken[0] += 1
        return plain(data if taken[0] < 2 else replace(data, images=data.images.flip(3)))

    made.predict_raw = raw


@pytest.mark.parametrize("sabotage", [nothing_found_after_two_images, others_found_after_two_images])
def test_later_predictions_are_compared(sabotage: Patch, tmp_path: Path) -> None:
    plain, sides = record(adapter("ssd", "infer"), "honest"), []
    for one in (sabotages.nothing, sabotage):
        made = adapter("ssd", "infer")
        one(made)
        told = predict(made, batches(), str(tmp_path / "found.json"))
        found = Prediction(path="predictions/x.json", **told)
        sides.append(plain.model_copy(update={"id": one.__name__, "predictions": found}))
    assert verdict(sides[0], sides[0]).verdict == "equal"
    assert verdict(sides[1], sides[0]).verdict == "unequal"


# -- in a loader of the codebase's own -------------------------------------------------------------------


def test_swapped_colours_differ_more_than_other_resizing() -> None:
    draw = torch.Generator().manual_seed(0)
    grey = torch.randn((1, 1, 8, 8), generator=draw).repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = grey + torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    agree = []
    for other in (image + 0.2 * torch.randn(image.shape, generator=draw), image.flip(1)):
        seen = []
        for one in (image, other):
            sink = Sink(Projection())
            sink.first_input(one.numpy())
            seen.append(sink.images)
        agree.append([one.agrees for one in images(*seen, at="", tolerance=0.3)])
    assert agree == [[True, True, True], [True, True, False]]
