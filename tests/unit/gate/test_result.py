"""The result of a check as CI systems read it, and its settings."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from bench.errors import BenchError
from bench.gate import check, metrics, output
from bench.gate.decide import Decision


def outcome(state: str, exit_code: int, **changes: Any) -> check.Result:
    decision = Decision(state, 0.1, 0.05, float("inf"), 0.001, 6, 3, 0, "because")  # type: ignore[arg-type]
    one = check.Judgement("tiny", metrics.metric("s/iter"), decision)
    result = check.Result("tiny", "one", "two", "interleaved", state, exit_code, (one,))  # type: ignore[arg-type]
    return replace(result, **changes)


def test_hostile_names_leave_the_xml_markdown_and_annotations_intact() -> None:
    hostile = "a<b>&\"'\x00\x1b]]>\n::error::| `x` \ud800"
    result = outcome("fail", 1, recipe=hostile, notes=(hostile,), errors=(hostile,))
    root = ET.fromstring(output.junit(result))
    assert root.find(".//failure") is not None
    assert all(line.startswith("::") and "\n" not in line for line in output.workflow_commands(result))
    assert "<b>" not in output.summary(result)
    assert "-->" not in output.comment(result).partition("\n")[0][4:-4]


@pytest.mark.parametrize(("exit_code", "kind"), [(0, "skipped"), (1, "failure"), (3, "error")])
def test_junit_shows_an_inconclusive_check_as_its_exit_code_does(exit_code: int, kind: str) -> None:
    root = ET.fromstring(output.junit(outcome("inconclusive", exit_code)))
    assert root.find(f".//testcase/{kind}") is not None


def test_the_json_of_an_open_interval_is_valid_json() -> None:
    text = json.dumps(outcome("fail", 1).as_json(), allow_nan=False)
    assert json.loads(text)["comparisons"][0]["high"] is None


@pytest.mark.parametrize("text", ["s/iter", "=3%", "s/iter=fast", "speed=3%", "s/iter=5", "AP=1"])
def test_a_mistyped_tolerance_is_an_error(text: str) -> None:
    with pytest.raises(BenchError):
        metrics.read_settings([text], 60)


def test_tolerance_for_metric_that_no_arm_has_is_error() -> None:
    settings = metrics.read_settings(["AP=0.001"], 60)
    with pytest.raises(BenchError, match="no arm of this recipe measures AP"):
        settings.refuse_unused(["train"])
    settings.refuse_unused(["train", "infer"])


@pytest.mark.parametrize(("choice", "code"), [("inconclusive", 3), ("pass", 0), ("fail", 1)])
def test_an_inconclusive_check_ends_as_the_user_chose(choice: str, code: int) -> None:
    settings = metrics.read_settings([], 60, choice)
    assert settings.exit_code("inconclusive") == code
    assert (settings.exit_code("pass"), settings.exit_code("fail")) == (0, 1)
