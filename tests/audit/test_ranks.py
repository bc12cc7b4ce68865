"""Two real ranks that exchange gradients (gloo): what each of them does has to be equal."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from bench.record.models import ArmRecord  # noqa: E402
from bench.worker.audit import audit  # noqa: E402
from tests.audit.sabotages import after, first_image, nothing  # noqa: E402
from tests.audit.small import adapter, batches, record_of, verdict  # noqa: E402

pytestmark = pytest.mark.nightly


def no_exchange(made: Any) -> None:
    """Each rank goes on with the gradients of its own batch."""
    made.loss_module = made.loss_module.module


def second_rank_in_bfloat16(made: Any) -> None:
    if made.job.rank:
        made.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)


def second_rank_repeats_the_first(made: Any) -> None:
    if made.job.rank:
        made.convert = lambda _, plain=made.convert: plain(batches()[1])


def second_rank_has_one_thread_more(made: Any) -> None:
    if made.job.rank:
        torch.set_num_threads(2)


def exchange_in_bfloat16(made: Any) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    made.loss_module.register_comm_hook(None, bf16_compress_hook)


def _exchange(made: Any, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Other exchange of the gradients of a bucket; ``change``: of those of this rank, and the number of the step."""
    taken = [0]

    def hook(_: Any, bucket: Any) -> Any:
        taken[0] += bucket.is_last()
        future: Any = torch.futures.Future()
        future.set_result(change(bucket.buffer(), taken[0]))
        return future

    hook.__annotations__.clear()  # torch wants its own class or none
    made.loss_module.register_comm_hook(None, hook)


def _mean(values: torch.Tensor) -> torch.Tensor:
    torch.distributed.all_reduce(values)
    return values.div_(2)


def half_of_the_gradients_exchanged(made: Any) -> None:
    def change(values: torch.Tensor, _: int) -> torch.Tensor:
        _mean(values[: len(values) // 2])
        return values

    _exchange(made, change)


def exchange_in_every_second_step(made: Any) -> None:
    _exchange(made, lambda values, step: _mean(values) if step % 2 else values)


def gradients_of_the_first_rank_only(made: Any) -> None:
    def change(values: torch.Tensor, _: int) -> torch.Tensor:
        torch.distributed.broadcast(values, 0)
        return values

    _exchange(made, change)


def sum_instead_of_mean(made: Any) -> None:
    _exchange(made, lambda values, _: 2 * _mean(values))


def second_rank_with_half_of_its_images(made: Any) -> None:
    if made.job.rank:
        after(made, "load", first_image)


def second_rank_without_average(made: Any) -> None:
    if made.job.rank:
        made.ema_update = nothing


SABOTAGES = [
    no_exchange,
    second_rank_in_bfloat16,
    second_rank_repeats_the_first,
    second_rank_has_one_thread_more,
    exchange_in_bfloat16,
    half_of_the_gradients_exchanged,
    exchange_in_every_second_step,
    gradients_of_the_first_rank_only,
    sum_instead_of_mean,
    second_rank_with_half_of_its_images,
    second_rank_without_average,
]
WORKLOAD = {"ranks": 2, "ema": True}


def serve(rank: int, ports: list[int], folder: str, names: list[str]) -> None:
    """All arms of one rank, one after the other; each meets the other rank at a port of its own.

    At a port of the arm before, a rank might meet the store that the other one is about to close, and wait for ever.
    """
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        RANK=str(rank),
        WORLD_SIZE="2",
        GLOO_SOCKET_IFNAME="lo",
    )
    known = {one.__name__: one for one in SABOTAGES}
    for name, port in zip(names, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        torch.set_num_threads(1)
        made = adapter("ssd", rank=rank, **WORKLOAD)
        if name in known:
            known[name](made)
        own = [batches()[rank], batches()[rank + 1]]  # the first one is for calibration, and not audited
        seen = audit(made, own)
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(seen))
        made.close()


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ArmRecord]:
    folder = tmp_path_factory.mktemp("ranks")
    names = ["honest", "again", *(one.__name__ for one in SABOTAGES)]
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in names]
        for one in free:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in free]
    torch.multiprocessing.spawn(serve, (ports, str(folder), names), nprocs=2)
    workload = {"task": "train", "model": "ssd300_vgg16", "input": {"size": [96, 128]}, **WORKLOAD}
    return {
        name: record_of(
            workload, [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)], name
        )
        for name in names
    }


def test_honest_ranks_are_equal(arms: dict[str, ArmRecord]) -> None:
    assert len(arms["honest"].audit["ranks"]) == 2
    first, second = (rank["steps"][0]["images"][0]["norm"] for rank in arms["honest"].audit["ranks"])
    assert first != second, "each rank has images of its own"
    assert verdict(arms["again"], arms["honest"]).verdict == "equal"


@pytest.mark.parametrize("name", [one.__name__ for one in SABOTAGES])
def test_sabotage_of_a_rank_is_caught(arms: dict[str, ArmRecord], name: str) -> None:
    found = verdict(arms[name], arms["honest"])
    assert found.verdict == "unequal"
    if name.startswith("second_rank"):
        assert any("of rank 1" in one.fact for one in found.differences)
