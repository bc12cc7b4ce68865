"""A run folder and its report: nothing of the machine, nothing secret, and complete in any place."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.gate.metrics import metric
from bench.gate.values import badness
from bench.inputs import shapes
from bench.record.run import Run
from tests.conftest import FAKE, ROOT, Cli, Finished

#: Of names and shapes that were once recorded by the beginning of the name, and of others.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIplantedKDENG",
    "CUDA_ACCESS_KEY": "planted-cuda-0002",
    "DATABASE_URL": "postgres://me:planted-url-03@db/x",
    "FLAGS_secret": "planted-flags-0004",
    "GITHUB_TOKEN": "ghp_planted5abcdefghijklmn0123456789",
    "GOMP_PRIVATE_KEY": "planted-gomp-0006",
    "HF_TOKEN": "hf_planted7abcdefghijklmnopqrstuv",
    "KMP_PASSWORD": "planted-kmp-0008",
    "MALLOC_CREDENTIALS": "planted-malloc-0009",
    "MKL_AUTH_TOKEN": "planted-mkl-0010",
    "MKL_MODE": "hf_planted11abcdefghijklmnopqrst",
    "NCCL_SECRET": "planted-nccl-0012",
    "NVIDIA_API_KEY": "nvapi-planted13-abcdefghij_0123",
    "OMP_TOOL_API_KEY": "planted-omp-0014",
    "OMP_TOOL_LIBRARIES": "pl4nted15Q8x0Zr7Lm2Vb9Nc3TqW",
    "ONEDNN_TOKEN": "planted-onednn-0016",
    "OPENAI_API_KEY": "sk-proj-planted17abcdefghijklmnop",
    "PADDLE_LICENSE_SECRET": "planted-paddle-0018",
    "TORCH_HUB_TOKEN": "planted-torch-0019",
    "WANDB_API_KEY": "planted20deadbeef0123456789deadbeef01234",
}
IN_THE_RECIPE = "hf_plantedinrecipeabcdefghijkl"


@dataclass(frozen=True)
class Measured:
    """A finished run of one user, with the report of it."""

    folder: Path
    report: Path
    environment: dict[str, str]
    data: Path
    outputs: tuple[Finished, ...]

    def texts(self) -> dict[str, str]:
        """Everything that could be sent to somebody else, by name."""
        files = [path for top in (self.folder, self.report) for path in top.rglob("*") if path.is_file()]
        texts = {str(path): path.read_bytes().decode(errors="replace") for path in files}
        return texts | {f"output {number}": one.out + one.err for number, one in enumerate(self.outputs)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Two arms on data outside of all known folders, one of which fails with a traceback."""
    root = tmp_path_factory.mktemp("portable")
    home, scratch, data = root / "home" / "ursula", root / "scratch", root / "data" / "scenes"
    for folder in (home, scratch, data):
        folder.mkdir(parents=True)
    shapes.write(data, "val", 2)
    environment = {**os.environ, **SECRETS, "HOME": str(home), "TMPDIR": str(scratch), "USER": "ursula"}
    for name in ("BENCH_CACHE", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    cli = Cli(home)
    variables = {"SERVICE_TOKEN": IN_THE_RECIPE, "OMP_WAIT_POLICY": "passive"}
    recipe = cli.recipe(
        workload={
            "task": "infer",
            "model": "faster_rcnn_r50_fpn",
            "weights": "random",
            "input": {"images": 2, "size": [64, 64], "dataset": str(data), "split": "val"},
        },
        arms=[
            {"codebase": "fake", "label": "sound", "options": {"step_s": 0.001}, "variables": variables},
            {"codebase": "fake", "label": "broken", "options": {"prepare": "raise"}},
        ],
        baseline={},
        measure={"warmup": 1, "steps": 1, "rounds": 2, "launches": 1, "deadline_s": 30},
    )
    done = cli.run(recipe, "--allow-variables", env=environment)
    assert done.code == 4, done.err
    (folder,) = cli.runs()
    reported = cli("report", folder, "--output", home / "report", env=environment)
    assert reported.code == 0, reported.err
    listed = cli("list", "runs", "--results", cli.results, env=environment)
    outputs = [done, reported, listed]
    outputs += [
        cli("site", "build", cli.results, "--output", home / "report" / "site", env=environment),
        cli("history", "--results", cli.results, env=environment),
        *(cli("export", folder, "--format", one, env=environment) for one in ("csv", "asv", "junit")),
    ]
    assert [one.code for one in outputs[2:]] == [0] * 6, [one.err for one in outputs[2:]]
    return Measured(folder, home / "report", environment, data, tuple(outputs))


def test_record_and_report_name_nothing_of_the_machine(measured: Measured) -> None:
    home, scratch = measured.environment["HOME"], measured.environment["TMPDIR"]
    known = [home, scratch, "ursula", str(measured.data.parent), str(ROOT)]
    if len(platform.node()) >= 4 and platform.node() != "localhost":
        known.append(platform.node())
    texts = {
        name: text
        for name, text in measured.texts().items()
        if not name.startswith("output") and "/logs/" not in name
    }
    assert len(texts) > 8
    found = {(name, word) for name, text in texts.items() for word in known if word in text}
    assert found == set()


def test_twenty_secrets_reach_no_output(measured: Measured) -> None:
    assert len(SECRETS) == 20
    values = [IN_THE_RECIPE, *SECRETS.values(), "planted-url-03"]
    found = {(name, value) for name, text in measured.texts().items() for value in values if value in text}
    assert found == set()


def test_record_holds_what_changes_speed(measured: Measured) -> None:
    (arm,) = [arm for arm in Run(measured.folder).arms() if arm.id == "sound"]
    assert arm.environment.variables["OMP_WAIT_POLICY"] == "passive"
    assert arm.environment.variables["SERVICE_TOKEN"] == "(hidden)"
    assert int(arm.environment.variables["OMP_NUM_THREADS"]) >= 1
    assert "NVIDIA_API_KEY" not in arm.environment.variables


def test_traceback_of_a_failed_arm_names_places(measured: Measured) -> None:
    (arm,) = [arm for arm in Run(measured.folder).arms() if arm.id == "broken"]
    assert arm.failure is not None
    assert any("{repository}/tests/fake/adapter.py" in line for line in arm.failure.log_tail)


def test_data_set_is_name_split_and_checksum(measured: Measured) -> None:
    record = json.loads((measured.folder / "run.json").read_text())
    assert set(record["dataset"]["scenes/val"]) == {"name", "split", "images", "checksum"}
    assert re.fullmatch(r"\{elsewhere\}/[0-9a-f]{6}/scenes", record["recipe"]["workload"]["input"]["dataset"])


def test_copied_folder_can_be_judged(measured: Measured, tmp_path: Path) -> None:
    copied = Run(shutil.copytree(measured.folder, tmp_path / "copied"))
    (arm,) = [arm for arm in copied.arms() if arm.id == "sound"]
    target = metric("AP", 0.1)
    here = badness(Run(measured.folder), arm, target, tmp_path / "cache")
    assert badness(copied, arm, target, tmp_path / "cache").equals(here)
    assert not (tmp_path / "cache").exists()


def test_run_goes_on_where_it_was_begun(measured: Measured, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    resume = ("run", "--resume", measured.folder, "--retry-failed", "--allow-variables", "--adapters", FAKE)
    without = cli(*resume, env=measured.environment)
    assert without.code == 2
    assert "SERVICE_TOKEN" in without.err
    environment = {**measured.environment, "SERVICE_TOKEN": IN_THE_RECIPE}
    assert cli(*resume, env=environment).code == 4
    elsewhere = cli(*resume, env={**environment, "BENCH_CACHE": str(tmp_path / "cache")})
    assert elsewhere.code == 2
    assert "scenes of this run is not known" in elsewhere.err
