"""Recipes of strangers at full size: no mutation of a sound recipe ends in a traceback."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.helpers.recipes import mutations, plan_or_refuse


@settings(max_examples=5000, deadline=None)
@given(text=mutations())
def test_no_mutated_recipe_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    plan_or_refuse(path)
