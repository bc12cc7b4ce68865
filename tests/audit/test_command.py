"""`bench audit` and `bench run --strict` on arms of a codebase that cannot be observed."""

from __future__ import annotations

from typing import Any

from tests.conftest import Cli

TWO_THREADS: list[dict[str, Any]] = [
    {"codebase": "fake", "label": "slow"},
    {"codebase": "fake", "label": "two", "options": {"threads": 2}},
]


def test_audit_says_what_differs_and_keeps_nothing(cli: Cli) -> None:
    done = cli("audit", cli.recipe(arms=TWO_THREADS), "--adapters", "tests/fake", "--json")
    assert done.code == 0, done.err
    (verdict,) = done.json()
    assert verdict["verdict"] == "unequal"
    assert verdict["differences"] == [
        {"fact": "threads asked for", "baseline": 1, "arm": 2, "tolerance": 0.0}
    ]
    assert not cli.results.exists()


def test_codebase_without_observer_is_not_shown(cli: Cli) -> None:
    recipe = cli.recipe(arms=[{"codebase": "fake", "label": "slow"}, {"codebase": "fake", "label": "twin"}])
    done = cli("audit", recipe, "--adapters", "tests/fake")
    assert done.code == 0, done.err
    assert "not shown" in done.out
    assert cli("audit", recipe, "--adapters", "tests/fake", "--strict").code == 3


def test_audit_prints_verdicts_although_an_arm_failed(cli: Cli) -> None:
    broken = {"codebase": "fake", "label": "broken", "options": {"prepare": "raise"}}
    done = cli("audit", cli.recipe(arms=[*TWO_THREADS, broken]), "--adapters", "tests/fake", "--json")
    assert done.code == 4
    assert [one["arm"] for one in done.json()] == ["two"]
    assert "broken cannot be audited" in done.err


def test_strict_refuses_to_time_unequal_work(cli: Cli) -> None:
    done = cli.run(cli.recipe(arms=TWO_THREADS), "--strict")
    assert done.code == 4
    failed = cli.arm("two")
    assert failed["failure"]["reason"] == "audit"
    assert "threads asked for: 2, the baseline has 1" in failed["failure"]["message"]
    assert failed["blocks"] == 0
    assert cli.arm("slow")["blocks"] == 6
