"""A record names places, not paths of one machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.record import places
from bench.record.places import REPOSITORY, Places


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A machine `kestrel`, its user `ursula` with a home, and a run in her results."""
    monkeypatch.setattr(platform, "node", lambda: "kestrel.example.org")
    monkeypatch.setattr(places.getpass, "getuser", lambda: "ursula")
    monkeypatch.setenv("HOME", "/home/ursula")
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: "/var/tmp/here")
    return Places(Path("/home/ursula/results/quick/run"), tmp_path / "cache")


def test_folders_become_places(here: Places) -> None:
    told = {
        "/home/ursula/results/quick/run/logs/a.log": "logs/a.log",
        "in /home/ursula/results/quick/run": "in .",
        f"{here.cache}/batches": "{cache}/batches",
        f'File "{REPOSITORY}/bench/x.py", line 3': 'File "{repository}/bench/x.py", line 3',
        "file:///home/ursula/x": "file://{home}/x",
        "--data=/home/ursula": "--data={home}",
        "/var/tmp/here/bench-scratch-x/a.npz": "{temporary}/bench-scratch-x/a.npz",
    }
    assert {text: here.text(text) for text in told} == told


def test_like_paths_stay(here: Places) -> None:
    for text in (
        "/home/ursula2/x",
        "/opt/home/ursulas",
        "x/var/tmp/here",
        "/opt/rh/gcc-toolset-13/root/usr/bin/c++",
    ):
        assert here.text(text) == text


def test_host_and_user_are_not_named(here: Places) -> None:
    assert here.text("from kestrel.example.org (kestrel)") == "from {name} ({name})"
    assert here.text("/scratch/ursula/data") == "/scratch/{name}/data"
    assert here.text("kestrels sing") == "kestrels sing"


def test_what_json_cannot_hold_is_replaced(here: Places) -> None:
    assert here.portable({"a": float("nan"), "b": [float("inf"), 1.5], "c": "x\ud800"}) == {
        "a": None,
        "b": [None, 1.5],
        "c": "x\\ud800",
    }


def test_recipe_is_restored_on_its_machine(here: Places) -> None:
    recipe: dict[str, Any] = {
        "workload": {
            "input": {"dataset": "/data/coco"}, "weights": "/home/ursula/w/{model}.npz", "name": "shapes"
        },
        "factors": {"weights": ["/data/a/w.npz", "/data/b/w.npz"]},
        "arms": [{"python": f"{REPOSITORY}/.venv/bin/python", "variables": {}}],
    }  # fmt: skip
    portable = here.recipe(recipe)
    assert "/data" not in str(portable)
    assert "ursula" not in str(portable)
    assert str(REPOSITORY) not in str(portable)
    assert portable["workload"]["input"]["dataset"].endswith("/coco")
    assert here.recipe(portable) == portable
    assert here.local(portable) == recipe


def test_data_set_of_another_machine_is_an_error(here: Places, tmp_path: Path) -> None:
    portable = here.recipe({"dataset": "/data/coco"})
    with pytest.raises(BenchError, match="coco of this run is not known"):
        Places(here.run, tmp_path / "other").local(portable)


def test_arguments_have_relative_paths(here: Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = {
        f"{tmp_path}/recipes/r.yaml": "recipes/r.yaml",
        "/data/r.yaml": "{elsewhere}/r.yaml",
        "workload.input.dataset=/data/coco": "workload.input.dataset={elsewhere}/coco",
        "--results=/home/ursula/results": "--results={home}/results",
        "run": "run",
        "mmdet=/opt/x/python:/data/mine/my.py@/data/w.pth": (
            "mmdet={elsewhere}/python:{elsewhere}/my.py@{elsewhere}/w.pth"
        ),
        "https://host/path": "https://host/path",
        "environment.variables.HF_TOKEN=hf_abcdefghijklmnopqrstuv": "environment.variables.HF_TOKEN=(hidden)",
    }
    assert {text: here.argument(text) for text in told} == told


def test_variables_with_keys_are_hidden(here: Places) -> None:
    variables = {"HF_TOKEN": "x", "KMP_BLOCKTIME": "1", "X": "a8F3k29sLm4Qw7Zx1Vb6Nc5T"}
    found = here.portable({"variables": variables})["variables"]
    assert found == {"HF_TOKEN": "(hidden)", "KMP_BLOCKTIME": "1", "X": "(hidden)"}


def test_home_of_everything_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.sep)
    assert Places(Path("/r/run")).text("/etc/x") == "/etc/x"
