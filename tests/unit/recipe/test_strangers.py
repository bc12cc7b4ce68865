"""Recipes of strangers: plain values, bounded work, and one error that lists all mistakes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.helpers.recipes import NASTY, SOUND, mutations, plan_or_refuse

MINIMAL = "name: t\nworkload: {model: faster_rcnn_r50_fpn}\narms: [fake]\n"
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "m0: &m0 {k: v}\n" + "".join(
    f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


def refused(folder: Path, text: str) -> str:
    path = folder / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    begin = time.process_time()
    message = plan_or_refuse(path)
    assert time.process_time() - begin < 5
    assert message is not None
    assert len(message) < 4000
    return message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "x: !!float abc\n", "r.yaml:4: not valid YAML: tags such as"),
        (MINIMAL + "x: !!timestamp abc\n", "r.yaml:4: not valid YAML: tags such as"),
        (MINIMAL + "? [a]\n: b\n", "r.yaml:4: a key must be a text"),
        (MINIMAL + "measure: {rounds: 2001-01-01}\n", "must be a whole number, got '2001-01-01'"),
        (MINIMAL + f"measure: {{rounds: {'9' * 5000}}}\n", "r.yaml:4: a number too large"),
        (MINIMAL + "measure: {deadline_s: 1e999}\n", "a number too large"),
        (MINIMAL + "measure: {deadline_s: inf}\n", "a finite number"),
        (MINIMAL.replace("name: t", "name: " + "t" * 300), "at most 100 characters"),
        (MINIMAL + 'description: "\\e]52;c;Zm9v\\a"\n', "r.yaml:4: a control character: \\x1b]52"),
        (MINIMAL + 'description: "\\ud800"\n', "a control character"),
        (MINIMAL + "x: &x [*x]\n", "nested too deeply"),
        (MINIMAL + LAUGHS, "values"),
        (MINIMAL + MERGES, "values"),
        (MINIMAL + "x: " + "[" * 5000 + "\n", "nested too deeply"),
        (MINIMAL + "# " + "x" * 300_000, "longer than 256 KiB"),
        (MINIMAL + "extends: /dev/zero\n", "/dev/zero: not a regular file"),
        (MINIMAL + f"extends: {'x' * 5000}\n", "does not exist"),
        (MINIMAL + f"factors: {{seed: [{'1, ' * 999}1], ema_decay: [{'1, ' * 999}1]}}\n", "combinations"),
        (MINIMAL + "factors: {input.size.short: [32]}\n", "unknown factor"),
        (MINIMAL + "baseline: {codebase: [fake]}\n", "unknown arm"),
        (MINIMAL + "environment: {affinity: [-1]}\n", "environment.affinity.0 must be 0 or more, got -1"),
        (MINIMAL.replace("fpn}", "fpn, seed: -1}"), "workload.seed must be 0 or more, got -1"),
    ],
)  # fmt: skip
def test_a_trap_is_one_quick_error_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    assert words in refused(tmp_path, text)


def test_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("name: t\ndescription: café\n".encode("latin-1"))
    assert "r.yaml:2: this is not UTF-8" in str(plan_or_refuse(tmp_path / "r.yaml"))


def test_a_pipe_is_no_recipe_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in str(plan_or_refuse(tmp_path / "pipe.yaml"))


def test_all_mistakes_are_listed_at_once_in_plain_words(tmp_path: Path) -> None:
    text = (
        "workload:\n  model: faster_rcnn_r50_fpn\n  input: {size: 12, imags: 3}\n  precision: int3\n"
        "arms: [fake]\nmeasure:\n  rounds: many\n  interleave: perhaps\n"
    )
    message = refused(tmp_path, text)
    assert "r.yaml: 6 problems" in message
    for line in (
        "r.yaml:3: workload.input.size must be [height, width], each from 32 to 4096, or {short: …, long: …}",
        "r.yaml:3: unknown key 'workload.input.imags'",
        "did you mean images?",
        "r.yaml:4: workload.precision: unknown value 'int3'",
        "r.yaml:7: measure.rounds must be a whole number, got 'many'",
        "r.yaml:8: measure.interleave must be on or off, got 'perhaps'",
        "r.yaml: 'name' is missing",
    ):
        assert line in message
    for word in ("Input should", "pydantic", "constrained"):
        assert word not in message


def test_the_sound_recipe_of_the_fuzz_can_be_planned(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SOUND)
    assert plan_or_refuse(tmp_path / "r.yaml") is None


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
def test_a_nasty_value_never_ends_in_a_traceback(tmp_path: Path, value: str) -> None:
    path = tmp_path / "r.yaml"
    for old in ("float32", "64, 64", "random", "slow", "0.02", "[0]", "ema: [on, off]"):
        path.write_bytes(SOUND.replace(old, value, 1).encode("utf-8", "surrogatepass"))
        plan_or_refuse(path)


@settings(max_examples=25, deadline=None)
@given(text=mutations())
def test_no_mutated_recipe_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("recipes") / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    plan_or_refuse(path)
