"""Writers that are killed at random leave a store whole: in a folder, and in an S3 of our own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.record.store import members as members_of
from bench.record.store import open_store
from tests.conftest import ROOT, Cli
from tests.helpers.clusters import MEASURE
from tests.helpers.slurm import free_ports
from tests.helpers.writers import RECIPE

KEYS = 24


def write(url: str, folder: Path) -> list[str]:
    """Have eight writers fill a store, some of them killed. Returns the keys that were put, once per success."""
    command = [sys.executable, "-m", "tests.helpers.writers", url, str(folder), str(KEYS)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300)
    return [line for path in folder.glob("log-*") for line in path.read_text().split()]


def assert_whole(url: str, noted: list[str]) -> None:
    store = open_store(url)
    keys = store.keys(RECIPE)
    assert len(keys) == KEYS
    assert store.recipes() == [RECIPE]
    assert len(noted) == len(set(noted)), "a cell was put twice"
    for key in keys:
        files = members_of(store.read(RECIPE, key), key)
        assert files["run.json"].decode() == key
        assert files["sha256"].decode() == hashlib.sha256(files["samples/a.parquet"]).hexdigest()


def test_folder_is_whole_after_kills(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    assert_whole(url, write(url, tmp_path))
    names = [path.name for path in Path(url, RECIPE).iterdir()]
    assert [name for name in names if name.startswith(".")] == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket with versions, so that a second writing would be seen."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="localhost", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bench")
    client.put_bucket_versioning(Bucket="bench", VersioningConfiguration={"Status": "Enabled"})
    yield "bench"
    server.stop()


def test_bucket_is_whole_after_kills(bucket: str, tmp_path: Path) -> None:
    import boto3

    url = f"s3://{bucket}/some/prefix"
    assert_whole(url, write(url, tmp_path))
    versions = boto3.client("s3").list_object_versions(Bucket=bucket)["Versions"]
    assert len(versions) == KEYS


@pytest.mark.nightly
def test_run_and_report_use_a_bucket(bucket: str, cli: Cli) -> None:
    url = f"s3://{bucket}/prefix"
    recipe = cli.recipe(factors={"ema": [False, True]}, measure=MEASURE)
    for shard in ("1/2", "2/2"):
        done = cli.run(recipe, "--shard", shard, "--store", url, "-q")
        assert done.code == 0, done.err
    again = cli.run(recipe, "--skip-done", "--store", url, "-q")
    assert again.err.count("finished before") == 2
    assert not cli.runs()
    done = cli("report", url, "--output", cli.folder / "report")
    assert done.code == 0, done.err
    assert (cli.folder / "report" / "report.md").read_text().count("fast / slow") == 2
    empty = cli("report", f"s3://{bucket}/nothing")
    assert (empty.code, "has no finished cell" in empty.err) == (2, True)


@pytest.mark.nightly
def test_store_that_does_not_answer_is_one_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    done = cli("report", "s3://bucket/prefix")
    assert done.code == 4
    assert done.err.startswith("error: s3://bucket/prefix: the store does not answer")
    assert "Traceback" not in done.err
    wrong = cli("report", "nothing://bucket")
    assert (wrong.code, "cannot open the store" in wrong.err) == (2, True)
