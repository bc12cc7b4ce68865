"""The steps that a trainer takes: precision, parts, optimizers, rules; and configs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detectors import config as configs
from detectors import eval as evaluation
from detectors import runtime, train, training_state
from detectors.coco import Batch
from detectors.config import ConfigError
from detectors.eval import METRICS
from detectors.schedule import make_schedule
from detectors.trainer import Trainer
from tests.helpers.process import ROOT


class Toy(nn.Module):
    """A model with one loss, for what does not depend on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def losses(self, images: Tensor, image_sizes: Tensor, targets: object) -> dict[str, Tensor]:
        return {"loss": self.linear(images.mean(dim=(2, 3))).float().square().mean()}


def toy_trainer(path: Path, *overrides: str) -> tuple[Trainer, Batch]:
    torch.manual_seed(0)
    config = configs.load(path, overrides).config
    schedule = make_schedule(config.schedule, lr=config.optimizer.lr, iterations_per_epoch=1)
    ranks = runtime.Ranks(0, 1, torch.device("cpu"))
    model = Toy()
    with torch.no_grad():  # so small that the first scale, 65536, is not too much
        for parameter in model.parameters():
            parameter.mul_(0.1)
    batch = Batch(torch.randn(2, 3, 8, 8), [(8, 8)] * 2, [(8, 8)] * 2, [1, 2], [])
    return Trainer(model, config, schedule, ranks), batch


def test_float16_steps_as_float32_and_skips_what_overflows(
    write_config: Callable[..., Path],
) -> None:
    path = write_config(optimizer={"lr": 0.1, "clip_norm": 0.01}, schedule={"iterations": 9, "warmup": 0})
    half, batch = toy_trainer(path, "precision=float16")
    full, _ = toy_trainer(path)
    before = half.model.linear.weight.clone()
    half.step(0, batch)
    full.step(0, batch)
    moved = full.model.linear.weight - before  # of length 0.001
    torch.testing.assert_close(half.model.linear.weight - before, moved, rtol=0, atol=1.5e-4)
    assert not torch.equal(half.model.linear.weight, before)

    state = half.state(1)
    assert state["scaler"]["scale"] > 1
    after = half.model.linear.weight.clone()
    half.step(1, batch._replace(images=batch.images * 1e20))
    assert torch.equal(half.model.linear.weight, after)
    assert half.state(2)["scaler"]["scale"] < state["scaler"]["scale"]


def test_a_batch_in_parts_has_the_gradients_of_the_whole(write_config: Callable[..., Path]) -> None:
    gradients = []
    for accumulate in (1, 2):
        trainer, batch = toy_trainer(write_config(), f"optimizer.accumulate={accumulate}")
        losses = trainer.gradients(batch)
        gradients.append([one.grad for one in trainer.model.parameters()] + list(losses.values()))
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts)


def test_adamw_takes_torchs_step(write_config: Callable[..., Path]) -> None:
    overrides = ("optimizer={name: adamw, lr: 0.01, weight_decay: 0.1, betas: [0.8, 0.9]}", "ema=null")
    trainer, batch = toy_trainer(write_config(schedule={"iterations": 5, "warmup": 0}), *overrides)
    reference = Toy()
    reference.load_state_dict(trainer.model.state_dict())
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    for iteration in range(3):
        trainer.step(iteration, batch)
        theirs.zero_grad()
        reference.losses(batch.images, batch.sizes(), [])["loss"].backward()
        theirs.step()
    for ours, expected in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_bfloat16_computes_what_float32_does_but_for_rounding(write_config: Callable[..., Path]) -> None:
    half, batch = toy_trainer(write_config(), "precision=bfloat16")
    full, _ = toy_trainer(write_config())
    rounded, exact = (trainer.step(0, batch)["loss"].item() for trainer in (half, full))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def test_gradients_are_clipped_and_rules_scale_rate_and_decay(write_config: Callable[..., Path]) -> None:
    path = write_config(
        optimizer={
            "lr": 0.5,
            "momentum": 0,
            "weight_decay": 0,
            "clip_norm": 0.01,
            "rules": [{"match": "bias", "lr": 2}],
        },
        schedule={"iterations": 9, "warmup": 0},
    )
    trainer, batch = toy_trainer(path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.step(0, batch)
    moved = {name: value - before[name] for name, value in trainer.model.state_dict().items()}
    gradient = torch.cat([moved["linear.weight"].flatten() / 0.5, moved["linear.bias"] / 1.0])
    assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_new_average_begins_with_the_weights_of_the_checkpoint(write_config: Callable[..., Path]) -> None:
    plain, batch = toy_trainer(write_config(optimizer={"lr": 0.1}), "ema=null")
    plain.step(0, batch)
    averaged, _ = toy_trainer(write_config(optimizer={"lr": 0.1}))
    averaged.restore(plain.state(1))
    assert torch.equal(averaged.evaluated_model().linear.weight, plain.model.linear.weight)


@pytest.mark.usefixtures("narrow")
def test_a_finished_run_is_not_written_over(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(schedule={"iterations": 1})
    assert train.main([str(path)]) == 0
    assert train.main([str(path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert train.main([str(path), "--resume"]) == 0  # nothing is left to do
    for change, said in (
        ("model.name=retinanet_r50_fpn", "the checkpoint is of another model or optimizer: "),
        ("model.settings.frozen_stages=3", "the checkpoint is of another model or optimizer: "),
        ("optimizer.name=adamw", "has the state of another optimizer: optimizer.name sgd → adamw"),
    ):
        assert train.main([str(path), "--resume", "--set", change]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param("batch: 2\nbatsh: 3", 7, "unknown key 'batsh'; did you mean batch?", id="unknown key"),
        pytest.param("optimizer: {lr: fast}", 6, "optimizer.lr must be a valid number", id="type"),
        pytest.param("batch: 0", 6, "batch must be greater than or equal to 1, got 0", id="limit"),
        pytest.param("batch: true", 6, "batch must be a valid integer, got True", id="true is no number"),
        pytest.param("precision: float61", 6, "did you mean float16", id="choice"),
        pytest.param("optimizer: {lr: true}", 6, "lr must be a valid number, got True", id="true rate"),
        pytest.param("optimizer: {lr: .inf}", 6, "lr must be a finite number, got inf", id="infinite"),
        pytest.param("optimizer: {}", 6, "'optimizer.lr' is missing", id="missing"),
        pytest.param("optimizer: {rate: 1}", 6, "unknown key 'rate'; known: accumulate, betas", id="nested"),
        pytest.param("evaluate: {resize: {shrt: 3}}", 6, "did you mean short?", id="deep"),
        pytest.param("augment: {crop: 1}", 6, "augment.crop must be a valid boolean", id="no truth"),
        pytest.param("kernels: fast", 6, "kernels must be 'auto' or 'torch', got 'fast'", id="kernels"),
        pytest.param("augment:\n  resize: {short: [600, 1400]}", 7, "longer than the long one", id="sides"),
        pytest.param(
            "schedule: {name: 1x, iterations: 5}", 6, "either name (1x, 2x, …) or iterations", id="both"
        ),
        pytest.param("output: a\noutput: b", 7, "'output' is given twice", id="twice"),
        pytest.param("batch: [1, 2", 7, "not valid YAML", id="syntax"),
    ],
)
def test_a_wrong_config_is_told_with_file_and_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    head = "\n".join(
        [
            "model: {name: mask_rcnn_r50_fpn}",
            "data:",
            "  train: {annotations: a.json, images: a}",
            "",
            "# The rest of it",
            "",
        ]
    )
    present = {line.partition(":")[0] for line in text.splitlines()}
    rest = {
        "optimizer": "optimizer: {lr: 0.1}",
        "schedule": "schedule: {name: 1x}",
        "output": "output: runs/a",
    }
    path = tmp_path / "config.yaml"
    path.write_text(
        "\n".join([head + text, *(value for key, value in rest.items() if key not in present)]) + "\n"
    )
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("model.name=mask_rcnn_r50_fpm", "did you mean mask_rcnn_r50_fpn", id="model"),
        pytest.param("model.settings.frozen=3", "frozen", id="setting"),
        pytest.param("data.train.images=/nowhere", "no such folder: /nowhere", id="folder"),
        pytest.param("data.train.images=/", "4 of 4 images are not in /", id="images"),
        pytest.param("weights=/nowhere.pt", "no such checkpoint", id="weights"),
        pytest.param("optimizer.rules=[{match: '('}]", "'(' is not a regular expression", id="expression"),
        pytest.param(
            "optimizer.rules=[{match: nothing_is_called_so}]", "is found in no trainable parameter", id="rule"
        ),
    ],
)
def test_what_is_not_there_ends_with_code_2(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert train.main([str(write_config()), "--set", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("narrow")
def test_a_loss_that_is_no_number_stops_the_run(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(optimizer={"lr": 1e20}, schedule={"iterations": 5, "warmup": 0}, log_every=3)
    assert train.main([str(path)]) == 4
    assert "a loss is no number" in capsys.readouterr().err
    assert not training_state.checkpoints(tmp_path / "run")


def test_the_configs_that_we_ship_can_be_read_and_built() -> None:
    files = sorted((ROOT / "detectors" / "configs").glob("*.yaml"))
    assert len(files) >= 12
    for file in files:
        loaded = configs.load(file)
        assert loaded.config.output.startswith("runs/"), file
        with torch.device("meta"):
            runtime.build_model(loaded, 3)


@pytest.mark.usefixtures("narrow")
def test_training_ends_when_no_ap_is_better(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    path = write_config(
        evaluated=True,
        model={"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 3}},
        optimizer={"lr": 1e-12},
        schedule={"iterations": 100},
        checkpoint={"best": "bbox", "patience": 1},
        evaluate={"every": 1, "resize": {"short": 64, "long": 96}},
    )
    assert train.main([str(path)]) == 0
    assert (
        "no better AP in 1 evaluations: stopped after iteration 2" in (tmp_path / "run/train.log").read_text()
    )
    assert [one.name for one in training_state.checkpoints(tmp_path / "run")] == ["checkpoint_00000002.pt"]
    assert training_state.best(tmp_path / "run")[1] == 1
    assert train.main([str(path), "--resume", "--set", "checkpoint.patience=2"]) == 0  # one has been without
    assert "stopped after iteration 3" in (tmp_path / "run/train.log").read_text()


def test_no_detections_are_an_ap_of_zero(shapes_folder: Path) -> None:
    split = configs.Split(
        str(shapes_folder / "annotations" / "instances_train.json"), str(shapes_folder / "train")
    )
    assert evaluation.summary(evaluation.evaluated(split, [], "segm")) == dict.fromkeys(METRICS, 0.0)
