"""Everything that arms need, made once and before anything is timed: inputs, schedules, interpreters, weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.inputs import weights as mappings
from bench.inputs.batches import prepare_batches, prepare_schedule
from bench.inputs.dataset import (
    Dataset,
    evaluated_input,
    open_dataset,
    open_evaluation,
    refuse_other_categories,
)
from bench.inputs.npz import check_npz, read_npz, sha256_of
from bench.inputs.watched import TOLD
from bench.measure.arm import MeasuredArm
from bench.measure.preflight import (
    WEIGHTS_SOURCE,
    check_weights,
    generator,
    interpreter_of,
    refuse_other_packages,
    weights_file,
)
from bench.measure.process import WorkerFailure
from bench.measure.site import Prepared, Site
from bench.recipe.codebases import Codebase
from bench.recipe.plan import Arm
from bench.recipe.workload import Workload
from bench.record.models import RANDOM_WEIGHTS, DatasetRecord, Weights
from bench.record.software import environment_of
from bench.worker.batches import file_sha256


def prepare_all(site: Site, arms: Sequence[MeasuredArm]) -> None:
    """Prepare every arm that is to be measured. Bad input is a BenchError; an arm without weights or interpreter
    fails alone."""
    made = _Made(site)
    telling = TOLD.set(site.listener.note)
    try:
        for one in arms:
            check_weights(one.arm)
            if one.arm.workload.task == "serve":
                generator()
            one.prepared = made.input_of(one.arm.workload)
    finally:
        TOLD.reset(telling)
    site.run.write_record(site.record)
    for one in arms:
        if one.alive:
            with one.failing(0):
                one.prepared = made.complete(one)


@dataclass
class _Made:
    """What is made so far, each distinct thing once."""

    site: Site
    opened: dict[Any, Dataset] = field(default_factory=dict)
    inputs: dict[str, Prepared] = field(default_factory=dict)
    environments: dict[Path, dict[str, Any]] = field(default_factory=dict)
    canonical: dict[str, Path] = field(default_factory=dict)

    def input_of(self, workload: Workload) -> Prepared:
        """Images, batches and schedule of a workload."""
        # What else a workload says (EMA, precision, learning rate, …) does not change its input.
        same = {"ema": False, "precision": "float32", "device": "cpu", "frozen_bn": False, "frozen_stages": 0}
        key = repr(sorted(workload.model_copy(update=same).model_dump(exclude={"optimizer"}).items()))
        if key not in self.inputs:
            self.inputs[key] = self._input(workload)
        return self.inputs[key]

    def _input(self, workload: Workload) -> Prepared:
        cache = self.site.cache
        if workload.task == "eval":  # timed on the images that it evaluates
            dataset = self._evaluation(workload)
        else:
            key = (workload.input.model_dump_json(), workload.trains)
            dataset = self._opened(key, lambda: open_dataset(workload.input, workload.task, cache))
        prepared = Prepared(dataset, prepare_batches(dataset, workload, cache))
        if workload.evaluates:
            evaluated = self._evaluation(workload)
            refuse_other_categories(dataset, evaluated)
            single = workload.model_copy(update={"batch_size": 1, "ranks": 1, "nodes": 1})
            batches = prepare_batches(evaluated, single, cache)
            prepared = replace(prepared, evaluated=evaluated, evaluation_batches=batches)
        if workload.task == "train_eval":
            path, sha256 = prepare_schedule(dataset, workload, cache)
            prepared = replace(prepared, schedule={"path": str(path), "sha256": sha256})
        return prepared

    def _evaluation(self, workload: Workload) -> Dataset:
        shape = {"size", "mode", "workers"}  # of no meaning for which images they are
        key = (evaluated_input(workload).model_dump_json(exclude=shape), workload.eval_images)
        return self._opened(key, lambda: open_evaluation(workload, self.site.cache))

    def _opened(self, key: Any, opening: Any) -> Dataset:
        if key not in self.opened:
            dataset: Dataset = opening()
            self.opened[key] = dataset
            name, known = f"{dataset.name}/{dataset.split}", self.site.record.dataset
            if name in known and known[name].checksum != dataset.checksum:  # another part of the same file
                name += f", {len(dataset.image_ids)} images"
            known[name] = DatasetRecord(
                name=dataset.name,
                split=dataset.split,
                images=len(dataset.image_ids),
                checksum=dataset.checksum,
            )
            for text in dataset.skipped:
                self.site.warn(f"skipped {text}")
        return self.opened[key]

    def complete(self, one: MeasuredArm) -> Prepared:
        """The input of an arm with its interpreter and weights. Raises WorkerFailure."""
        arm, prepared = one.arm, one.prepared
        assert prepared is not None
        if prepared.schedule:
            workload = arm.workload
            sha256 = prepared.schedule["sha256"]
            shared = {"schedule_sha256": sha256, "seed": workload.seed, "flip": workload.flip}
            own = {"order": "of the codebase's own loader", "augmentation": "of the codebase's own loader"}
            one.record.input = shared if workload.input.mode == "shared" else own
        python = _python_of(arm, self.site.codebase(arm))
        if python not in self.environments:
            self.environments[python] = environment_of(python)
        if one.record.blocks:
            began = one.record.environment.packages
            refuse_other_packages(began, self.environments[python].get("packages", {}), arm.id)
        prepared = replace(prepared, python=python, environment=self.environments[python])
        if arm.weights is not None:
            weights = _weights_file(arm.weights, arm.workload)
            if weights.suffix == ".npz":
                with _failing_arm():
                    check_npz(weights)
            one.record.weights = self._file(weights)
            return replace(prepared, weights=weights)
        codebase = self.site.codebase(arm)
        random = arm.workload.weights in ("transplant", "random")
        if arm.workload.task == "eval" and random and not (codebase.pretrained and arm.workload.own_model):
            _warn(one, f"{RANDOM_WEIGHTS}: its AP says nothing")
        canonical = self._canonical_weights_of(one, prepared)
        if canonical is None:
            one.record.weights = Weights(source="own")
            return prepared
        model = arm.workload.model
        target = self.site.scratch / f"{canonical.stem}-{model}-{arm.codebase}.npz"
        with _failing_arm():
            state = read_npz(canonical)
            transplanted = arm.workload.weights == "transplant"
            one.record.weights = (
                Weights(source="transplanted", sha256=sha256_of(state))
                if transplanted
                else self._file(canonical)
            )
            if not target.exists():
                np.savez(target, **mappings.to_codebase(arm.codebase, model, state))  # type: ignore[arg-type]
            names = mappings.canonical_names(arm.codebase, model, state)
        return replace(prepared, weights=target, names=names)

    def _file(self, path: Path) -> Weights:
        """A file of weights, by place, with its checksum."""
        return Weights(
            source="file", path=self.site.run.places.argument(str(path)), sha256=file_sha256(str(path))
        )

    def _canonical_weights_of(self, one: MeasuredArm, prepared: Prepared) -> Path | None:
        """The weights an arm starts from, in canonical names; None: its own seeded initialisation."""
        arm, workload = one.arm, one.arm.workload
        if workload.weights == "random" or workload.own_model:
            return None
        if workload.weights == "transplant":
            name = mappings.source_of(workload.model)
            source = self.site.codebases.get(name)
            if source is None or workload.model not in source.models:
                _own_weights(one, f"{name} offers no {workload.model}")
                return None
            makers = (each for each in (arm, *self.site.plan.arms) if each.codebase == name)
            maker = None if name == WEIGHTS_SOURCE else next(makers, None)
            if name != WEIGHTS_SOURCE and maker is None:
                _own_weights(one, f"they are {name}'s, which is no arm here")
                return None
            options = mappings.source_options(arm.codebase, workload.model, arm.options)
            canonical = self._canonical(arm, source, prepared, options, maker)
        else:
            canonical = _weights_file(workload.weights, workload)
        if not mappings.supports(arm.codebase, workload.model):
            _own_weights(one, f"no mapping of {workload.model} to {arm.codebase}")
            return None
        return canonical

    def _canonical(
        self, arm: Arm, source: Codebase, prepared: Prepared, options: dict[str, Any], place: Arm | None
    ) -> Path:
        """Seeded weights of the canonical model, made by the source codebase with these options, in the environment of
        the arm ``place`` of it."""
        plain = {"ema": False, "precision": "float32", "device": "cpu", "weights": "random"}
        plain |= {"ranks": 1, "nodes": 1}
        plain["task"] = "infer"  # no optimizer, which takes seconds to import
        workload = arm.workload.model_copy(update=plain)
        identity = (
            f"{workload.model}-{options}-{workload.seed}-{workload.frozen_bn}-{prepared.dataset.checksum}"
        )
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        if key not in self.canonical:
            path = self.site.scratch / f"canonical-{key}.npz"
            name = f"weights-{workload.model}"
            maker = Arm(name, source.name, source.name, {}, "", workload, options, {}, arm.threads)
            if place is not None:
                maker = replace(
                    maker, python=place.python, environment=place.environment, source=place.source
                )
            self.site.listener.stage(maker, 0, "weights")
            prepared = replace(prepared, python=_python_of(maker, source))
            self.site.write_once("save", maker, prepared, path)
            self.canonical[key] = path
        return self.canonical[key]


@contextlib.contextmanager
def _failing_arm() -> Iterator[None]:
    """Weights that are damaged, or of another model, fail the arm that starts from them, not the session."""
    try:
        yield
    except (BenchError, KeyError, ValueError) as error:
        raise WorkerFailure("environment", f"weights: {error}", "prepare") from None


def _python_of(arm: Arm, codebase: Codebase) -> Path:
    try:
        return interpreter_of(arm, codebase)
    except BenchError as error:
        raise WorkerFailure("environment", "; ".join(str(error).split("\n  ")), "hello") from None


def _own_weights(one: MeasuredArm, reason: str) -> None:
    """The arm keeps its own random weights, and its record says so."""
    _warn(one, f"own random weights, not the transplanted ones: {reason}")


def _warn(one: MeasuredArm, warning: str) -> None:
    if warning not in one.record.warnings:
        one.record.warnings.append(warning)


def _weights_file(path: str, workload: Workload) -> Path:
    with _failing_arm():
        return weights_file(path, workload)
