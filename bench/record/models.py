"""The schema of a run's record."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, FiniteFloat

from bench.recipe.workload import Workload
from bench.record.names import FileName, InnerPath, Label, file_name
from bench.record.parts import Memory, RecordModel, Served

#: 2: data sets by name, split and checksum; no path, host or user name of the machine; ground truth beside predictions.
SCHEMA_VERSION = 2

Status = Literal["ok", "failed", "partial"]
Reason = Literal["crash", "killed", "oom", "hang", "exception", "nan", "protocol", "environment", "audit"]

#: How a warning of an arm begins that was evaluated without having been trained.
RANDOM_WEIGHTS = "random weights"

#: Beyond the schema: what recipes, workers and frameworks say in words of their own.
Facts = dict[str, Any]


def _known_version(version: int) -> int:
    if not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(
            f"schema {version} is unknown: this bench reads schemas 1 to {SCHEMA_VERSION}; update it"
        )
    return version


SchemaVersion = Annotated[int, AfterValidator(_known_version)]


class RankTimes(RecordModel):
    """When the steps of one rank's block began, and when the last one ended. Nanoseconds of the worker's clock."""

    start_ns: Annotated[list[int], Field(min_length=1)]
    """Start of every step."""
    end_ns: int
    """End of the last step."""


class Block(RecordModel):
    """One finished block of an arm: a line of the journal."""

    arm: str
    """Id of the arm."""
    launch: Annotated[int, Field(ge=0)]
    """Launch, from 0."""
    round: Annotated[int, Field(ge=-1)]
    """0-based within the launch; -1 of the warm-up."""
    position: Annotated[int, Field(ge=0)]
    """Place of the arm in the order of the round."""
    ranks: Annotated[list[RankTimes], Field(min_length=1)]
    """The times of every rank."""
    batches: list[int] = Field(default_factory=list)
    """Number of the batch of each step on the first rank; empty: not known."""
    taken_cores: float | None = None
    """Processors that others kept busy meanwhile; None: not observed."""
    allowed_cores: float = 0.1
    """More than this is a disturbance."""
    losses: dict[str, list[float | None]] = Field(default_factory=dict)
    """Of a train_eval arm: loss → value of every step; None where it is no finite number."""

    @property
    def steps(self) -> int:
        """Steps of the block."""
        return len(self.ranks[0].start_ns)


# -- parts of an arm's record ----------------------------------------------------------------------------------


class Failure(RecordModel):
    """Why an arm failed."""

    reason: Reason
    """What happened."""
    message: str
    """The message of the failure."""
    stage: str = ""
    """The message the worker was answering: hello, prepare, run_block, …"""
    launch: int = 0
    """Launch in which it happened, from 0."""
    log: InnerPath = ""
    """Path of the log, relative to the run folder."""
    log_tail: list[str] = Field(default_factory=list)
    """Last lines of the log."""


class Losses(RecordModel):
    """The losses of one step."""

    launch: int
    """Launch, from 0."""
    round: int | None = None
    """Round within the launch, from 0."""
    step: int | None = None
    """Of a train_eval arm: 0-based step of the training."""
    losses: dict[str, float | None]
    """Loss → value; None where it is no finite number."""
    done: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Of a timed block: ``steps`` of its process so far, `bench.worker.api.Adapter.squares` after them, and ``later``
    (see `bench.worker.probe.run_block`)."""
    found: list[Facts] = Field(default_factory=list)
    """Of the first timed block in inference: detections of each image of one step."""


class Prediction(RecordModel):
    """One prediction pass: every image once."""

    path: InnerPath
    """Detections in COCO's results format, relative to the run folder."""
    images: Annotated[int, Field(ge=0)]
    """Images predicted."""
    detections: Annotated[int, Field(ge=0)]
    """Detections written."""
    seconds: FiniteFloat = 0.0
    """Seconds of the whole pass."""
    phases: dict[str, FiniteFloat] = Field(default_factory=dict)
    """Phase → seconds of all images."""
    found: list[Facts] = Field(default_factory=list)
    """Detections of some images, for the audit."""


class Truth(RecordModel):
    """What every evaluation of an arm is of."""

    split: str
    """Split of the data set."""
    checksum: str
    """Checksum of images and annotations."""
    ground_truth: InnerPath
    """Annotations in COCO's format, relative to the run folder."""
    image_ids: list[int]
    """Images evaluated."""


def _with_ap(metrics: dict[str, float | None]) -> dict[str, float | None]:
    if "AP" not in metrics:
        raise ValueError("AP is missing")
    return metrics


class Accuracy(RecordModel):
    """Boxes or masks of one evaluation (`bench.judge.accuracy.Evaluation`, without the image ids)."""

    metrics: Annotated[dict[str, float | None], AfterValidator(_with_ap)]
    """Metric of COCO → value from 0 to 1; None where it is undefined."""
    objects: int = 0
    """Objects to find, crowds not counted."""
    images_without_objects: int = 0
    """Images without any annotation."""
    detections: int = 0
    """Detections in these images."""


class Evaluation(RecordModel):
    """The accuracy of an arm after a number of steps."""

    step: int | None = None
    """None of task eval."""
    train_s: FiniteFloat | None = None
    """Seconds of all steps so far; None of task eval."""
    predictions: Prediction
    """The detections evaluated."""
    bbox: Accuracy | None = None
    """Accuracy of boxes."""
    segm: Accuracy | None = None
    """Accuracy of masks."""

    def kinds(self) -> dict[Literal["bbox", "segm"], Accuracy]:
        """What was evaluated, boxes before masks."""
        found: dict[Literal["bbox", "segm"], Accuracy | None] = {"bbox": self.bbox, "segm": self.segm}
        return {kind: one for kind, one in found.items() if one is not None}


class Revision(RecordModel):
    """The code that git tracks; empty where git tracks none."""

    revision: str | None = None
    """Commit."""
    dirty: bool | None = None
    """Tracked files were changed."""
    origin: str = ""
    """Address of the repository, where it is a public one; without user and password."""
    diff: InnerPath = ""
    """The changes, relative to the run folder; cut where they are longer than `bench.record.machine.MAX_DIFF_BYTES`."""


class Environment(RecordModel):
    """The interpreter that an arm ran in."""

    python: str | None = None
    """Version of Python."""
    implementation: str | None = None
    """Implementation of Python."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Distribution → version, of all that are installed."""
    git: Revision = Field(default_factory=Revision)
    """Of the codebase's source, where git tracks it."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Variables that change speed, and those that the recipe and the adapter set."""
    preloaded: list[str] = Field(default_factory=list)
    """Modules that all arms of this codebase were forked with."""


class Weights(RecordModel):
    """What an arm started from."""

    source: Literal["own", "transplanted", "file"]
    """own: the codebase's own seeded initialisation. transplanted: one seeded set, the same in every codebase."""
    path: str = ""
    """Of a file: where it lay, by place."""
    sha256: str = ""
    """Of a file: of its bytes. Of transplanted weights: of their canonical names, types, shapes and values."""


class DatasetRecord(RecordModel):
    """A data set that the run used."""

    name: str = ""
    """Name of the data set."""
    split: str = ""
    """Split of the data set."""
    images: int = 0
    """Images used."""
    checksum: str = ""
    """Checksum of images and annotations."""


# -- records ---------------------------------------------------------------------------------------------------


#: Of a description: names of facts, and what they are.
DESCRIBED: tuple[tuple[tuple[str, ...], type | UnionType], ...] = (
    (("parameters", "trainable_parameters", "forward_flops", "training_flops", "threads"), int | float),
    (("extra", "library", "optimizer", "postprocess", "peak_flops_per_s"), dict),
    (("kernels", "codebase_version"), str),
)


def _known_description(description: Facts) -> Facts:
    """Check the kinds of the facts that reports and the audit use."""
    for names, kind in DESCRIBED:
        for name in names:
            if description.get(name) is not None and not isinstance(description[name], kind):
                raise ValueError(f"{name} is not what a description has there")
    if not all(isinstance(one, int | float) for one in (description.get("peak_flops_per_s") or {}).values()):
        raise ValueError("peak_flops_per_s holds what is no number")
    return description


class ArmRecord(RecordModel):
    """Identity, facts and outcome of one arm; the raw samples are beside it."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """Version of this schema."""
    id: FileName
    """File-safe name, unique in the run."""
    codebase: str
    """Name of the codebase."""
    label: Label
    """How reports name the arm: the codebase, and the levels that tell it from its neighbours."""
    levels: Facts = Field(default_factory=dict)
    """Factor → level of this arm (without the codebase)."""
    cell: FileName
    """Arms with the same cell are interleaved and compared with each other."""
    baseline: str | None = None
    """Id of the arm that this one is compared with; its own id, if it is the baseline."""
    workload: Workload
    """The work of the arm, as resolved."""
    options: Facts = Field(default_factory=dict)
    """Options of the arm."""
    model_sha256: str = ""
    """Of the file of a model of the codebase's own; empty of other models."""
    weights_sha256: str = ""
    """Of the file of weights that only this arm starts from."""
    status: Status
    """ok, failed, or partial after an interruption."""
    failure: Failure | None = None
    """Why the arm failed."""
    launches: int = 0
    """Launches that were measured."""
    blocks: int = 0
    """Blocks that were measured."""
    steps: int = 0
    """Steps that were measured."""
    description: Annotated[Facts, AfterValidator(_known_description)] = Field(default_factory=dict)
    """What the worker said of the work (bench.worker.api.Description)."""
    audit: dict[str, list[Facts]] = Field(default_factory=dict)
    """What was observed of a few steps: ``ranks``, one `bench.worker.audit.audit` per rank, in canonical names; and
    ``closing``, one `bench.worker.audit.look` per rank, after the timed blocks (empty: it failed); and ``shaken``, as
    ``ranks`` with images that differ in their last place, where facts differed by little."""
    threads: list[int] = Field(default_factory=list)
    """Threads of the framework after timed blocks: every number that was seen."""
    busy_processors: FiniteFloat | None = None
    """The most processors that a timed block kept busy in one rank."""
    weights: Weights | None = None
    """What it started from. None: not known."""
    environment: Environment = Field(default_factory=Environment)
    """The interpreter of the arm."""
    phases: dict[str, list[float]] = Field(default_factory=dict)
    """Phase → seconds per step, one value per step of the phase passes (data, forward, backward, …)."""
    averaging: list[float] = Field(default_factory=list)
    """By how many seconds averaging gradients over the ranks lengthens each of these backward phases."""
    operators: dict[str, list[float]] = Field(default_factory=dict)
    """Operator → seconds in a step, and `step` → seconds of all of it, one value per operator pass."""
    memory: list[Memory] = Field(default_factory=list)
    """Memory passes."""
    losses: list[Losses] = Field(default_factory=list)
    """First and last losses of each launch."""
    predictions: Prediction | None = None
    """Detections of the last prediction pass."""
    evaluated: Truth | None = None
    """What the predictions are evaluated against."""
    evaluations: list[Evaluation] = Field(default_factory=list)
    """Every evaluation, by steps."""
    energy: dict[str, list[FiniteFloat]] = Field(default_factory=dict)
    """Device (CPU, GPU) → joules per image of every block, settling steps counted."""
    no_energy: dict[str, str] = Field(default_factory=dict)
    """Device → why its energy is not known."""
    conditions: dict[str, list[FiniteFloat]] = Field(default_factory=dict)
    """What the machine did in every measured block, by name with unit: stolen processors, page faults per step, …"""
    served: list[Served] = Field(default_factory=list)
    """Of a serve arm: every scenario, by launches."""
    input: Facts = Field(default_factory=dict)
    """Of a train_eval arm: what decided order and augmentation: SHA-256 of the schedule of its batches, seed, flip."""
    warnings: list[str] = Field(default_factory=list)
    """What the reader of a report must know."""

    def memory_counted(self) -> list[Memory]:
        """The memory passes of processes that had not described their work before, if there are any: tools of the
        audit are no memory of the codebase.
        """
        return [one for one in self.memory if not one.described] or self.memory


def _known_recipe(recipe: Facts) -> Facts:
    """Check the name, and the kinds of the settings that reports use."""
    if "name" in recipe:
        file_name(str(recipe["name"]))
    measure = recipe.get("measure") or {}
    if not isinstance(measure, dict):
        raise ValueError("measure is not what a recipe has there")
    for name, kind, most in (("until", int | float, 1), ("launches", int, 100_000)):
        value = measure.get(name)
        if value is not None and not (isinstance(value, kind) and 0 <= value <= most):
            raise ValueError(f"measure.{name} is not what a recipe has there")
    return recipe


class CellRecord(RecordModel):
    """One cell that was measured as a run of its own, perhaps on another machine than the others."""

    digest: FileName
    """Its key: hash of the cell, the locks of its environments, and the code (`bench.measure.cells`)."""
    index: int = 0
    """Place of the cell in the plan, from 0."""
    planned: int = 1
    """Cells of the plan."""
    attempt: int = 1
    """Number of the attempt, from 1; those before it were lost, or disturbed by others."""
    node: str = ""
    """Digits that stand for the machine: two cells with the same ones were measured on the same machine."""
    scheduler: str = ""
    """Scheduler and its number of the job: `slurm 17_3`; empty: none."""
    fingerprint: str = ""
    """Kind of the machine (`bench.record.machine.fingerprint`)."""
    disturbed: float = 0.0
    """Share of the blocks in which other processes were busy."""


def _known_machine(machine: Facts) -> Facts:
    """Check the kinds of the facts that reports and fingerprints use."""
    for name, kind in (("cpu", dict), ("memory", dict), ("os", dict), ("gpus", list)):
        if not isinstance(machine.get(name) or kind(), kind):
            raise ValueError(f"{name} is not what a machine's record has there")
    gpus = [gpu for gpu in machine.get("gpus") or [] if isinstance(gpu, dict)]
    sizes = [
        (machine.get("memory") or {}).get("total_bytes"),
        *(gpu.get("memory_total_bytes") for gpu in gpus),
    ]
    if not all(size is None or (isinstance(size, int | float) and 0 <= size < 2**63) for size in sizes):
        raise ValueError("a size of memory is no number of bytes")
    return machine


class RunRecord(RecordModel):
    """What was asked for, where and with what."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    """Version of this schema."""
    id: FileName
    """Name of the run folder."""
    recipe: Annotated[Facts, AfterValidator(_known_recipe)]
    """The recipe as resolved, factors and overrides applied."""
    recipe_path: str = ""
    """File of the recipe."""
    command: list[str] = Field(default_factory=list)
    """Command line."""
    kind: Literal["run", "check", "calibration"] = "run"
    """What the run was measured for; `latest` is a run."""
    started_utc: str
    """Time of the start."""
    ended_utc: str | None = None
    """Time of the end."""
    status: Literal["running", "complete", "interrupted", "failed"] = "running"
    """State of the run."""
    bench_version: str
    """Version of bench."""
    git: Revision = Field(default_factory=Revision)
    """Of bench itself."""
    machine: Annotated[Facts, AfterValidator(_known_machine)] = Field(default_factory=dict)
    """`bench.record.machine.describe_machine`."""
    load_before: list[float] = Field(default_factory=list)
    """Load averages before the run."""
    load_after: list[float] = Field(default_factory=list)
    """Load averages after the run."""
    dataset: dict[str, DatasetRecord] = Field(default_factory=dict)
    """Data sets used, by `name/split`."""
    arms: list[FileName] = Field(default_factory=list)
    """Ids of all planned arms, in plan order."""
    baseline: Facts = Field(default_factory=dict)
    """Factor or `codebase` → level; the arm of a cell group that the others are compared with."""
    aa: bool = False
    """Whether the baseline was measured against itself."""
    cells: dict[FileName, CellRecord] = Field(default_factory=dict)
    """Cell → where it was measured, when its cells are runs of their own; empty: all of them here, in one session."""
    check: Facts | None = None
    """Of a run of `bench check`: revisions, verdict, comparisons."""
    warnings: list[str] = Field(default_factory=list)
    """What the reader of a report must know."""
