"""Recipes: what is written is what is measured, and every mistake is one clear error with its place."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan, round_orders
from tests.conftest import FAKE, ROOT

MINIMAL = "name: t\nworkload: {model: faster_rcnn_r50_fpn}\narms: [fake]\n"
NATIVE = MINIMAL.replace("fake", "native")


def write(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fail(path: Path, *settings: str) -> str:
    with pytest.raises(BenchError) as caught:
        make_plan(load_recipe(path, settings), find_codebases([FAKE]))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (MINIMAL + "mesure: {rounds: 3}\n", 4, ["unknown key 'mesure'", "measure?"]),
        (MINIMAL + "measure:\n  rounds: 3\n  luanches: 2\n", 6, ["measure.luanches", "launches?"]),
        (MINIMAL.replace("[fake]", "[fakke]"), 3, ["unknown codebase 'fakke'", "fake?"]),
        (MINIMAL.replace("faster_", "fster_"), 2, ["unknown model", "mean faster_rcnn_r50_fpn"]),
        (MINIMAL + "factors:\n  emma: [on]\n", 5, ["unknown factor 'emma'", "ema?"]),
        (MINIMAL + "factors:\n  precision: [float32, flaot16]\n", 5, ["precision", "flaot16"]),
        (MINIMAL + "factors: {ema: [on, off]}\nexclude:\n  - {ema: maybe}\n", 6, ["not a level of ema"]),
        (MINIMAL + "factors: {ema: [on, off]}\nexclude:\n  - {em: on}\n", 6, ["'em' is not a factor", "ema?"]),
        (MINIMAL + "factors: {size: [[64, 64]]}\nexclude:\n  - {size: 64x64}\n", 6, ["known: [64, 64]"]),
        (MINIMAL + "environment: {variables: {OMP_NUM_THREADS: 2}}\n", 4, ["a text, got 2", "in quotes"]),
        (MINIMAL + "\tmeasure: {rounds: 2}\n", 4, ["a tab: indent by spaces"]),
        (MINIMAL + "baseline: torchvison\n", 4, ["unknown arm 'torchvison'"]),
        (MINIMAL.replace("arms: [fake]\n", ""), None, ["'arms' is missing"]),
        (MINIMAL + "measure: {rounds: 0}\n", 4, ["measure.rounds", "1 or more, got 0"]),
        (MINIMAL + "measure: {rounds: 2, rounds: 3}\n", 4, ["'rounds' is given twice"]),
        (MINIMAL + "measure: [1\n", 5, ["not valid YAML"]),
        ("- a list\n", None, ["a recipe is a mapping"]),
        (MINIMAL + "x: !!python/object/apply:os.system [ls]\n", 4, ["not valid YAML"]),
        (MINIMAL + "extends: nowhere.yaml\n", 4, ["nowhere.yaml", "does not exist"]),
        (MINIMAL.replace("fake", "{codebase: native, options: {optimiser: sgd}}"), 3, ["'optimiser'", "optimizer?"]),
        (NATIVE + "factors:\n  options.compiled: [on]\n", 5, ["no option 'compiled'", "compile?"]),
        (MINIMAL.replace("[fake]", "[fake, fake]"), 3, ["two arms are called 'fake'"]),
    ],
)  # fmt: skip
def test_mistake_in_recipe_names_file_line_and_fix(
    tmp_path: Path, text: str, line: int | None, words: list[str]
) -> None:
    message = fail(write(tmp_path, text))
    place = f"r.yaml:{line}: " if line else "r.yaml"
    assert place in message
    for word in words:
        assert word in message


def test_mistake_in_extended_recipe_is_reported_where_it_stands(tmp_path: Path) -> None:
    write(tmp_path, "measure:\n  runds: 3\n", "base.yaml")
    assert "base.yaml:2: unknown key 'measure.runds'" in fail(
        write(tmp_path, MINIMAL + "extends: base.yaml\n")
    )


def test_recipe_that_extends_itself_is_refused_instead_of_never_ending(tmp_path: Path) -> None:
    assert "extends itself" in fail(write(tmp_path, MINIMAL + "extends: r.yaml\n"))


def test_command_line_wins_over_recipe_and_recipe_over_base(tmp_path: Path) -> None:
    write(tmp_path, "measure: {rounds: 7, steps: 7, launches: 7}\n", "base.yaml")
    path = write(tmp_path, MINIMAL + "extends: base.yaml\nmeasure: {rounds: 8, steps: 8}\n")
    measure = load_recipe(path, ["measure.rounds=9"]).recipe.measure
    assert (measure.rounds, measure.steps, measure.launches) == (9, 8, 7)
    assert measure.warmup == 3  # the default


def test_off_without_quotes_is_a_word_where_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "measure: {quiet: off}\n")
    assert load_recipe(path, []).recipe.measure.quiet == "off"
    assert load_recipe(path, ["measure.quiet=off"]).recipe.measure.quiet == "off"


def test_a_mistake_on_the_command_line_is_reported_as_such(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert "--set measure.runds=3: unknown key" in fail(path, "measure.runds=3")
    assert "expected key=value" in fail(path, "measure")


def test_anchors_and_merge_keys_work_and_keep_their_lines(tmp_path: Path) -> None:
    text = (
        "name: t\nworkload: {model: faster_rcnn_r50_fpn}\n"
        "arms:\n  - &slow {codebase: fake, label: a, options: {step_s: 1}}\n  - {<<: *slow, label: b}\n"
    )
    arms = load_recipe(write(tmp_path, text)).recipe.arms
    assert [(arm.label, arm.options["step_s"]) for arm in arms] == [("a", 1), ("b", 1)]
    assert "r.yaml:5: unknown key" in fail(write(tmp_path, text.replace("label: b", "labl: b")))


def test_an_arm_setting_can_be_changed_from_the_command_line(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["arms.0.options={step_s: 3}"]).recipe
    assert recipe.arms[0].options == {"step_s": 3}


def test_factors_make_every_combination_once_but_the_excluded_ones(tmp_path: Path) -> None:
    text = MINIMAL.replace("[fake]", "[{codebase: fake, label: a}, {codebase: fake, label: b}]") + (
        "factors: {ema: [on, off], task: [train, infer], size: [[64, 64], [96, 64]]}\n"
        "exclude: [{task: infer, ema: on}, {codebase: b, size: [96, 64]}]\nbaseline: {codebase: a}\n"
    )
    plan = make_plan(load_recipe(write(tmp_path, text)), find_codebases([FAKE]))
    found = {(a.label, a.workload.ema, a.workload.task, tuple(a.workload.input.size)) for a in plan.arms}  # type: ignore[arg-type]
    expected = {
        (label, ema, task, size)
        for label in "ab"
        for ema in (True, False)
        for task in ("train", "infer")
        for size in ((64, 64), (96, 64))
        if not (task == "infer" and ema) and not (label == "b" and size == (96, 64))
    }
    assert found == expected
    assert len(plan.arms) == len(expected)
    for cell in plan.cells:  # only the codebase may differ in a cell of this baseline
        assert len({(a.workload.ema, a.workload.task, a.workload.input.size) for a in cell}) == 1


def test_what_codebase_lacks_must_be_excluded_by_name(
    tmp_path: Path,
) -> None:
    message = fail(write(tmp_path, MINIMAL + "factors: {model: [faster_rcnn_r50_fpn, ssd300_vgg16]}\n"))
    assert "r.yaml:3: fake offers no ssd300_vgg16" in message
    assert "{codebase: fake, model: ssd300_vgg16}" in message


@pytest.mark.parametrize(
    ("arms", "factor", "words"),
    [
        ("[mmdet]", "compile: [off, on]", "mmdet has no switch compile"),
        ("[paddledet]", "channels_last: [on]", "paddledet has no switch channels_last"),
        ("[native]", "tf32: [on]", "tf32 is a switch of CUDA devices, and the device is cpu"),
        ("[paddledet]", "device: [cuda]\n  tf32: [off]", "paddledet has no switch tf32"),
        ("[native]", "device: [cuda]\n  cuda_graphs: [on]", "cuda_graphs captures what is compiled"),
        ("[native]", "amp: [on]", "precision"),
        ("[paddledet]", "precision: [bfloat16]", "paddledet offers precision bfloat16 on CUDA devices only"),
    ],
)
def test_switch_that_is_not_there_is_refused(tmp_path: Path, arms: str, factor: str, words: str) -> None:
    message = fail(write(tmp_path, f"{MINIMAL.replace('[fake]', arms)}factors:\n  {factor}\n"))
    assert words in message
    assert "r.yaml:" in message


def test_switch_becomes_the_option_of_each_codebase(tmp_path: Path) -> None:
    text = MINIMAL.replace("[fake]", "[native, mmdet]") + "factors: {compile: [off, on], tf32: [off]}\n"
    text += "exclude: [{codebase: mmdet, compile: on}]\n"
    plan = make_plan(load_recipe(write(tmp_path, text)), find_codebases())
    assert [(arm.label, arm.options.get("compile")) for arm in plan.arms] == [
        ("native", False), ("mmdet", None), ("native", True)
    ]  # fmt: skip
    assert all("tf32" not in arm.options for arm in plan.arms)  # on a CPU it is off anyway


def test_a_run_against_itself_measures_one_codebase_twice(tmp_path: Path) -> None:
    plan = make_plan(load_recipe(write(tmp_path, MINIMAL)), find_codebases([FAKE]), aa=True)
    assert [arm.label for arm in plan.arms] == ["fake (A)", "fake (B)"]
    assert plan.arms[0].workload == plan.arms[1].workload
    assert plan.baseline == {"codebase": "fake (A)"}


@given(arms=st.integers(1, 8), rounds=st.integers(1, 30), seed=st.integers())
def test_linear_drift_over_two_rounds_falls_on_all_alike(arms: int, rounds: int, seed: int) -> None:
    orders = round_orders(arms, rounds, seed)
    assert len(orders) == rounds
    assert all(sorted(order) == list(range(arms)) for order in orders)
    for first, second in zip(orders[::2], orders[1::2], strict=False):
        assert second == first[::-1]


@pytest.mark.parametrize("arms", [2, 3, 4, 5, 6, 8])
def test_every_arm_follows_every_other_equally_often(arms: int) -> None:
    rounds = arms if arms % 2 == 0 else 2 * arms
    followed = Counter(pair for order in round_orders(arms, rounds, 7) for pair in itertools.pairwise(order))
    assert len(followed) == arms * (arms - 1)
    assert len(set(followed.values())) == 1
    assert round_orders(arms, rounds, 7) != round_orders(arms, rounds, 8) or arms == 2


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_can_be_planned(path: Path) -> None:
    assert make_plan(load_recipe(path), find_codebases()).arms


def test_wrong_names_are_listed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    text = "name: t\nworkload: {model: retinanet_r50_fpn}\narms: [natve, torchvison]\n"
    file.write_text(f"{text}baseline: mmdet\nexclude: [{{emma: on}}]\n")
    with pytest.raises(BenchError, match=r"(?s)2 problems.*unknown arm 'mmdet'.*'emma' is not a factor"):
        load_recipe(file)
    file.write_text(text)
    with pytest.raises(BenchError, match=r"(?s)2 problems.*did you mean native.*did you mean torchvision"):
        make_plan(load_recipe(file), find_codebases())
    file.write_text("name: t\nworkload: {model: solov2_r50_fpn}\narms: [torchvision, transformers]\n")
    with pytest.raises(BenchError, match=r"(?s)2 problems.*torchvision offers no.*transformers offers no"):
        make_plan(load_recipe(file), find_codebases())
