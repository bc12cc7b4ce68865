"""Equal work, or a list of differences: what each worker said of its arm, against what the baseline's said.

A comparison is *unequal work* when a fact differs by more than its tolerance, unless a factor that the two arms were
chosen to differ in explains it. Tolerances are relative. They are as narrow as honest differences allow: codebases
round anchors and pad feature maps differently, which moves FLOPs by a per mille and the loss by a per cent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.judge.pairs import baseline_of
from bench.recipe.models import MODELS
from bench.record.models import ArmRecord


@dataclass(frozen=True)
class Fact:
    """One thing that has to be equal. ``value`` reads it from a record, None where the codebase does not know it."""

    name: str
    value: Callable[[ArmRecord], Any]
    tolerance: float = 0.0
    explained_by: frozenset[str] = frozenset()
    """Factors whose difference makes a difference of this fact expected."""


@dataclass(frozen=True)
class Difference:
    """A fact that differs: the baseline's value, the arm's, and the tolerance that it broke."""

    fact: str
    baseline: Any
    arm: Any
    tolerance: float = 0.0

    def __str__(self) -> str:
        text = f"{self.fact}: {_shown(self.arm)}, the baseline has {_shown(self.baseline)}"
        if _is_number(self.arm) and _is_number(self.baseline) and self.baseline:
            text += f" ({(self.arm / self.baseline - 1) * 100:+.2f} %)"
        return text


@dataclass(frozen=True)
class Audit:
    """The verdict on one arm against the baseline of its comparison."""

    arm: str
    baseline: str
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...]
    """Facts that one of the two does not report: not proven equal, not shown unequal."""

    @property
    def equal(self) -> bool:
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "baseline": self.baseline,
            "equal": self.equal,
            "differences": [
                {"fact": d.fact, "baseline": d.baseline, "arm": d.arm, "tolerance": d.tolerance}
                for d in self.differences
            ],
            "unknown": list(self.unknown),
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _described(*path: str) -> Callable[[ArmRecord], Any]:
    def read(record: ArmRecord) -> Any:
        value: Any = record.description
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return read


def _all_parameters(record: ArmRecord) -> Any:
    """Parameters, and the affine values of frozen normalisation that some codebases keep as buffers."""
    count = record.description.get("parameters")
    frozen = record.description.get("extra", {}).get("frozen_affine_values") or 0
    return None if count is None else count + frozen


def _first_loss(record: ArmRecord) -> Any:
    """The total loss after the warm-up of the first launch: every arm has then seen the same batches."""
    own_weights = any("own random weights" in warning for warning in record.warnings)
    losses = dict(record.losses[0]["losses"]) if record.losses and not own_weights else {}
    total = losses.pop("loss", None)  # some codebases add the sum themselves
    return total if total is not None else float(sum(losses.values())) if losses else None


def _number_of_loss_terms(record: ArmRecord) -> Any:
    terms = record.description.get("loss_terms")
    return len(terms) if terms else None


def loss_tolerance(model: str) -> float:
    """R-CNNs draw anchors and proposals at random, each codebase from its own generator."""
    return 0.01 if model in MODELS and MODELS[model].deterministic else 0.25


WHAT_TRAINS = frozenset({"model", "frozen_stages", "frozen_bn"})

#: Facts of every workload. What only some codebases report (a kind of NMS, say) is compared where both do.
FACTS = (
    Fact("parameters", _all_parameters, 1e-3, frozenset({"model"})),
    Fact("trainable parameters", _described("trainable_parameters"), 1e-3, WHAT_TRAINS),
    Fact("forward FLOPs", _described("forward_flops"), 0.01, frozenset({"model", "size", "batch_size"})),
    Fact("input shape", _described("input_shape"), 0.0, frozenset({"size", "batch_size", "ranks"})),
    Fact("input dtype", _described("input_dtype"), 0.0, frozenset({"precision"})),
    Fact("input mean", _described("input_mean"), 0.01, frozenset({"mode"})),
    Fact("input standard deviation", _described("input_std"), 0.01, frozenset({"mode"})),
    Fact("ground-truth objects", _described("objects"), 0.0, frozenset({"batch_size", "images", "mode"})),
    Fact("precision", _described("precision"), 0.0, frozenset({"precision"})),
    Fact("learning rate", _described("optimizer", "lr"), 1e-6, frozenset({"lr"})),
    Fact("momentum", _described("optimizer", "momentum"), 1e-6, frozenset({"momentum"})),
    Fact("weight decay", _described("optimizer", "weight_decay"), 1e-6, frozenset({"weight_decay"})),
    Fact("optimizer state values", _described("optimizer", "state_values"), 1e-3, WHAT_TRAINS),
    Fact("EMA", _described("extra", "ema"), 0.0, frozenset({"ema"})),
    Fact("loss terms", _number_of_loss_terms, 0.0, frozenset({"model"})),
    Fact("score threshold", _described("postprocess", "score_threshold"), 1e-6, frozenset({"score_threshold", "task"})),
    Fact("NMS IoU threshold", _described("postprocess", "nms_iou_threshold"), 1e-6, frozenset({"task"})),
    Fact("maximum detections", _described("postprocess", "max_detections"), 0.0, frozenset({"max_detections", "task"})),
    Fact("proposal candidates", _described("postprocess", "proposal_candidates"), 0.0, frozenset({"task"})),
    Fact("proposals", _described("postprocess", "proposals"), 0.0, frozenset({"task"})),
    Fact("threads", _described("threads"), 0.0, frozenset({"threads", "ranks"})),
)  # fmt: skip


def audit(arm: ArmRecord, baseline: ArmRecord) -> Audit:
    """Compare an arm with the baseline of its comparison."""
    factors = {
        name for name in {*arm.levels, *baseline.levels} if arm.levels.get(name) != baseline.levels.get(name)
    }
    factors |= {name.rpartition(".")[2] for name in factors}
    model = str(arm.workload.get("model"))
    loss = Fact(
        "loss after warm-up",
        _first_loss,
        loss_tolerance(model),
        frozenset({"model", "size", "batch_size", "mode", "lr", "precision", "frozen_stages", "frozen_bn"}),
    )
    differences, unknown = [], []
    for fact in (*FACTS, loss):
        if factors & fact.explained_by:
            continue
        expected, found = fact.value(baseline), fact.value(arm)
        if expected is None and found is None:
            continue
        if expected is None or found is None:
            unknown.append(fact.name)
        elif not _equal(expected, found, fact.tolerance):
            differences.append(Difference(fact.name, expected, found, fact.tolerance))
    return Audit(arm.id, baseline.id, tuple(differences), tuple(unknown))


def _equal(expected: Any, found: Any, tolerance: float) -> bool:
    if _is_number(expected) and _is_number(found):
        return bool(abs(found - expected) <= tolerance * max(abs(expected), abs(found)) + 1e-12)
    return bool(expected == found)


def audit_run(arms: Sequence[ArmRecord], baseline: Mapping[str, Any]) -> dict[str, Audit]:
    """Verdicts by arm id, for all arms that have a baseline and were described."""
    verdicts = {}
    for arm in arms:
        reference = baseline_of(arm, arms, baseline)
        if reference is not None and reference.id != arm.id and arm.description and reference.description:
            verdicts[arm.id] = audit(arm, reference)
    return verdicts
