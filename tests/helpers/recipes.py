"""Recipes as a stranger might write them: a sound one with parts replaced, for fuzzing."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from tests.conftest import FAKE

SOUND = """\
name: t
description: words
workload:
  task: train
  model: faster_rcnn_r50_fpn
  input: {images: 2, size: [64, 64], dataset: shapes, mode: shared}
  optimizer: {lr: 0.001, milestones: [1]}
  weights: random
  batch_size: 2
  seed: 0
arms:
  - &one {codebase: fake, label: slow, options: {step_s: 0.02}, variables: {OMP_PROC_BIND: close}}
  - {<<: *one, label: fast}
factors:
  ema: [on, off]
  precision: [float32]
exclude:
  - {codebase: slow, ema: on}
baseline: {codebase: fast, ema: off}
measure: {rounds: 3, launches: 2, deadline_s: 1e1, interleave: true}
environment: {threads: 1, affinity: [0]}
"""

#: What broke readers of YAML and of settings before.
NASTY = (
    "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}", "!!python/name:os.system", "!x y", "[a]",
    "? [a]\n:  b", "{[a]: b}", "{{a: b}: c}", "2001-01-01", "1:30", "0x1f", "1_000", ".inf", "-.inf", ".nan", "1e999",
    "9" * 30, "9" * 5000, "-1", "0", "1.5", "~", "null", "on", "''", '"\\ud800"', '"\\0"', '"\\x1b]0;t\\a"',
    '"\\U0011ffff"',
    "\x85", "\u2028", "&a [*a]", "*one", "*nowhere", "<<: 1", "a" * 3000, "[" * 200, "{}", "[]", "[[[]]]", "[/b]",
    "../..",
    "/dev/zero", "/", "..", "%", "|", ">", "---", "...", "\t", "é", "快速", "²", "inf", "nan", "options.x",
    "input.size.short",
)  # fmt: skip


def mutations() -> st.SearchStrategy[str]:
    """`SOUND` with one to three parts replaced by a nasty value, a random text, or another part of itself."""
    replacement = st.sampled_from(NASTY) | st.text(max_size=8) | spans().map(lambda span: SOUND[slice(*span)])
    return st.lists(st.tuples(spans(), replacement), min_size=1, max_size=3).map(_replaced)


def spans() -> st.SearchStrategy[tuple[int, int]]:
    """Parts of `SOUND`: words, and now and then anything."""
    starts = [index for index in range(len(SOUND)) if index == 0 or SOUND[index - 1] in " \n[{,:"]
    words = [(start, start + max(1, _word(SOUND[start:]))) for start in starts]
    anything = st.tuples(st.integers(0, len(SOUND)), st.integers(0, 40)).map(
        lambda pair: (pair[0], sum(pair))
    )
    return st.sampled_from(words) | anything


def _word(text: str) -> int:
    return next((index for index, char in enumerate(text) if char in " \n]},:"), len(text))


def _replaced(changes: list[tuple[tuple[int, int], str]]) -> str:
    text = SOUND
    for (begin, end), new in sorted(changes, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def plan_or_refuse(path: Path) -> str | None:
    """Plan a recipe. Returns the error that a user sees, None where there is none; anything else is raised."""
    try:
        make_plan(load_recipe(path), find_codebases([FAKE]))
    except BenchError as error:
        return str(error)
    return None
