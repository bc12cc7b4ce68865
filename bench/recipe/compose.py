"""A recipe from what a command line says: arms as `CODEBASE:MODEL[@WEIGHTS]`, data, task, size."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import BenchError, did_you_mean, near
from bench.recipe.codebases import Codebase, get_codebase
from bench.recipe.problems import as_one

#: How files of models end; names of a codebase's zoo may end so, too.
FILES = (".py", ".yaml", ".yml", ".onnx")
TASKS = ("train", "infer", "serve")

#: What stands beside the keys of a recipe that is written here.
COMMENTS = {
    "name": "name of the folder of its runs",
    "workload": "the work of every arm (docs/reference/recipe.md has all fields)",
    "task": "train or infer: time steps; eval: infer, and AP of the weights; serve: infer, and requests",
    "input": "the same images for every codebase",
    "dataset": "a folder of COCO, YOLO or Pascal VOC, or shapes",
    "size": "[height, width]: exactly that; or short and long side with the ratio kept",
    "batch_size": "images per step",
    "frozen_stages": "null: as each model's own configuration says",
    "frozen_bn": "null: as each model's own configuration says",
    "eval_images": "images that AP is computed of",
    "arms": "what is compared: codebase, and a model of its own where the models differ",
    "baseline": "the arm that the others are compared with",
    "options": "chosen so that the work is that of the other codebase",
    "measure": "launches: fresh processes; rounds: visits to every arm in each; steps: of a visit",
}


@dataclass(frozen=True)
class Asked:
    """What a user asks for."""

    arms: tuple[str, ...]
    data: str = "shapes"
    task: str = "infer"
    size: str = "800x1333"
    batch: int = 1
    images: int = 16
    device: str = "cpu"
    launches: int = 3
    rounds: int = 5
    steps: int = 2


@dataclass(frozen=True)
class ArmText:
    """One arm of a command line, taken apart."""

    codebase: Codebase
    model: str
    weights: str | None = None
    where: str | None = None
    """A named environment, an interpreter or a checkout."""

    @property
    def canonical(self) -> str | None:
        """The canonical model, where it is one."""
        model, own = self.codebase.model_of(self.model)
        return model if own is None else None

    @property
    def label(self) -> str:
        """How a reader knows the model: the end of its path, without a suffix."""
        end = self.model.rstrip("/").rpartition("/")[2]
        return re.sub(r"\.(py|yaml|yml|onnx)$", "", end)


def parse_arm(text: str, codebases: Mapping[str, Codebase]) -> ArmText:
    """`CODEBASE[=WHERE]:MODEL[@WEIGHTS]`.

    Args:
        text: The argument.
        codebases: The known ones, by name.

    Raises:
        BenchError: It has another form, or names an unknown codebase.
    """
    head, colon, rest = text.partition(":")
    if not colon or not head or not rest:
        raise BenchError(
            f"'{text}' is no arm: expected CODEBASE:MODEL[@WEIGHTS]",
            hint=f"for example torchvision:fasterrcnn_resnet50_fpn; codebases: {', '.join(codebases)}",
        )
    name, _, where = head.partition("=")
    model, at, weights = rest.rpartition("@")
    if not at:
        model, weights = rest, ""
    codebase = get_codebase(name, codebases, where=text)
    arm = ArmText(codebase, model, weights or None, where or None)
    if arm.canonical is None and codebase.name not in codebase.schemes:
        raise BenchError(
            f"{codebase.name} has no model '{model}'", where=text, hint=did_you_mean(model, codebase.models)
        )
    if where and "/" in where and not Path(where).expanduser().exists():
        raise BenchError(f"no checkout and no interpreter {where}", where=text, hint=near_file(where))
    if arm.canonical is None and model.endswith(FILES):
        refuse_missing_file(model, text)
    return arm


def refuse_missing_file(model: str, where: str | None = None) -> None:
    """A path whose folder exists and whose file does not is a typing error; a name alone may be one of a zoo."""
    file = Path(model).expanduser()
    if "/" in model and file.parent.is_dir() and not file.exists():
        raise BenchError(f"no file {model}", where=where, hint=near_file(model))


def misspelt(texts: Sequence[str], codebases: Mapping[str, Codebase]) -> Iterator[str]:
    """Notes on models that are taken for a codebase's own and are called nearly as one that all know."""
    for arm in (parse_arm(text, codebases) for text in texts):
        hint = near(arm.model, arm.codebase.models, cutoff=0.9)
        if hint and arm.canonical is None and not arm.model.endswith(FILES):
            yield f"{arm.model} is taken for a name of {arm.codebase.name}'s own; {hint}"


def near_file(path: str) -> str:
    """What is called nearly so in the folder of a path that is not there; empty without any."""
    folder, name = Path(path).expanduser().parent, Path(path).name
    return near(name, os.listdir(folder), cutoff=0.75) if folder.is_dir() else ""


def sides_of(text: str) -> list[int]:
    """One or two numbers of pixels, as `640` or `800x1333`. Raises BenchError."""
    sides = text.lower().split("x")
    numbers = [int(side) for side in sides if side.isdecimal() and 32 <= int(side) <= 4096]
    if len(numbers) != len(sides) or len(sides) > 2:
        raise BenchError(
            f"--size {text}: expected one or two numbers of pixels, from 32 to 4096",
            hint="for example --size 800x1333 or --size 640",
        )
    return numbers


def size_of(text: str) -> list[int] | dict[str, int]:
    """`640` and `640x640` are a square, `800x1333` is a short and a long side. Raises BenchError."""
    numbers = sides_of(text)
    if len(set(numbers)) == 1:
        return [numbers[0], numbers[0]]
    return {"short": min(numbers), "long": max(numbers)}


def check_task(text: str) -> None:
    """Raises BenchError for what is no task."""
    if text not in TASKS:
        raise BenchError(f"task {text}: expected train, infer or serve", hint=did_you_mean(text, TASKS))


def check_batch(text: str) -> None:
    """Raises BenchError for what is no number of images."""
    if not text.isdecimal() or not int(text):
        raise BenchError(f"{text} images per step: expected a whole number from 1")


def composed(asked: Asked, codebases: Mapping[str, Codebase]) -> dict[str, Any]:
    """The recipe, as its file holds it.

    Args:
        asked: What the user asks for.
        codebases: The known ones, by name.

    Returns:
        Keys and values of a recipe. Where all arms have one canonical model it is the workload's, so that the work
        is equal; else every arm has its own.

    Raises:
        BenchError: An arm or a value has another form.
    """
    arms, wrong = [], []
    for text in asked.arms:
        try:
            arms.append(parse_arm(text, codebases))
        except BenchError as error:
            wrong.append(error)
    if wrong:
        raise as_one(wrong, Path("bench vs"))
    if not arms:
        raise BenchError("no arm", hint="bench vs native:mask_rcnn_r50_fpn torchvision:maskrcnn_resnet50_fpn")
    check_task(asked.task)
    shared = arms[0].canonical if len({arm.canonical for arm in arms}) == 1 else None
    weighted = any(arm.weights or (arm.codebase.pretrained and arm.canonical is None) for arm in arms)
    evaluates = asked.task == "infer" and weighted
    labels = _labels(arms, one_model=shared is not None)
    workload: dict[str, Any] = {
        "task": "eval" if evaluates else asked.task,
        **({"model": shared} if shared else {}),
        "input": {**input_of(asked.data, asked.images), "size": size_of(asked.size)},
        "batch_size": asked.batch,
        **({"device": asked.device} if asked.device != "cpu" else {}),
        **({} if shared else {"frozen_stages": None, "frozen_bn": None}),
        **({"eval_images": asked.images} if evaluates else {}),
    }
    others = dict.fromkeys(arm.codebase.name for arm in arms)
    contents = [_arm_content(arm, label, shared, others) for arm, label in zip(arms, labels, strict=True)]
    measure = {"launches": asked.launches, "rounds": asked.rounds, "steps": asked.steps}
    return {
        "name": "-".join(["vs", *dict.fromkeys(arm.codebase.name for arm in arms)])[:100],
        "description": f"bench vs: {', '.join(map(_told, contents))}."[:1000],
        "workload": workload,
        "arms": contents,
        "baseline": {"codebase": labels[0]},
        "measure": measure,
    }


def input_of(data: str, images: int = 1) -> dict[str, Any]:
    """`shapes`, the folder of a data set, or `ANNOTATIONS.json=FOLDER` of a COCO file and its images."""
    if data == "shapes":
        return {"dataset": "shapes", "images": images}
    first, equals, second = data.partition("=")
    if equals and first.endswith(".json"):
        files = (str(Path(one).expanduser().resolve()) for one in (first, second))
        return {**dict(zip(("annotations", "images"), files, strict=True)), "count": images}
    folder = Path(data).expanduser()
    if folder.is_file():
        hint = f"--data {data}=FOLDER, the one that its file names are in"
        raise BenchError("a file of annotations, and no folder of images", where=data, hint=hint)
    if not folder.is_dir():
        raise BenchError("no such folder of data", where=data, hint=near_file(data))
    return {"dataset": str(folder.resolve()), "images": images}


def _arm_content(arm: ArmText, label: str, shared: str | None, others: Iterable[str]) -> dict[str, Any]:
    """Keys of an arm. Of `others`, the codebases by arms, the first one that it has options for decides them."""
    content: dict[str, Any] = {"codebase": arm.codebase.name, "label": label}
    if shared:
        fitting = (arm.codebase.options_beside(other, shared) for other in others)
        if options := next(filter(None, fitting), None):
            content["options"] = options
    else:
        file = Path(arm.model).expanduser()
        content["model"] = _path(file) if file.exists() and arm.canonical is None else arm.model
    if arm.weights:
        content["weights"] = _path(Path(arm.weights).expanduser())
    if arm.where:
        content |= _place(arm.where)
    elif arm.codebase.name == "python":
        module = arm.model.partition(":")[0].replace(".", "/")
        if Path(module).exists() or Path(f"{module}.py").exists():
            content["source"] = "."
    return content


def _path(path: Path) -> str:
    """As seen from the current folder, so that a recipe works in another checkout; whole where it is elsewhere."""
    whole = path.resolve()
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)


def _told(arm: Mapping[str, Any]) -> str:
    """Label and options that were chosen."""
    chosen = ", ".join(f"{name}: {value}" for name, value in arm.get("options", {}).items())
    return f"{arm['label']} ({chosen})" if chosen else str(arm["label"])


def _place(where: str) -> dict[str, str]:
    """Where an arm runs: the folder of an environment or its interpreter, another folder as a checkout, or a name."""
    path = Path(where).expanduser()
    if (path / "bin" / "python").exists():
        path = path / "bin" / "python"
    if path.is_dir():
        return {"source": _path(path)}
    if path.is_file() or "/" in where:
        return {"python": os.path.abspath(path)}
    return {"environment": where}


def _labels(arms: Sequence[ArmText], *, one_model: bool) -> list[str]:
    """Names that tell the arms apart."""
    labels: list[str] = []
    names = [arm.codebase.name for arm in arms]
    for arm in arms:
        alone = one_model and names.count(arm.codebase.name) == 1
        parts = [arm.codebase.name, *([] if one_model else [arm.label])]
        if not alone and arm.where:
            parts.append(Path(os.path.abspath(arm.where)).name)
        label = " ".join(parts)
        if label in labels and arm.weights:
            label = f"{label} {Path(arm.weights).stem}"
        same = sum(one == label or one.startswith(f"{label} #") for one in labels)
        labels.append(f"{label} #{same + 1}" if same else label)
    return labels


def recipe_text(content: Mapping[str, Any]) -> str:
    """YAML with a comment at the keys that need one."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    lines = []
    for line in text.splitlines():
        match = re.match(r"( *)(\w+):", line)
        comment = COMMENTS.get(match[2]) if match and not line.lstrip().startswith("-") else None
        value_goes_on = line.endswith((">", "|", "'", '"')) and "description" in line
        lines.append(f"{line}  # {comment}" if comment and not value_goes_on else line)
    return "\n".join(lines) + "\n"
