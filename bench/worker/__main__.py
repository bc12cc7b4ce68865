"""`python -m bench.worker`: serve one arm (one rank of it) until the session says `bye` or is gone.

With `BENCH_WORKER_PRELOAD` it serves no arm: it imports the modules named there and forks workers that have them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import mmap
import os
import platform
import random
import sys
import traceback
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from bench.worker.channel import SOCKET_VARIABLE, Channel, ProtocolError

AFFINITY_VARIABLE = "BENCH_WORKER_AFFINITY"
PRELOAD_VARIABLE = "BENCH_WORKER_PRELOAD"


def rank_of_environment() -> int:
    """The rank, as torchrun and paddle.distributed.launch tell it."""
    return int(os.environ.get("RANK") or os.environ.get("PADDLE_TRAINER_ID") or 0)


class Rotation:
    """The shared batches of a rank, again and again. A block may begin at any of them."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches
        self.number = 0

    def seek(self, number: int, count: int) -> List[int]:
        """Go on with batch ``number``, counted without end. Returns which ones the next ``count`` steps take."""
        self.number = number
        return [(number + step) % len(self.batches) for step in range(count)]

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.number += 1
        return self.batches[(self.number - 1) % len(self.batches)]


class Worker:
    """Answers messages; each method named as its message returns the reply's fields."""

    def __init__(self) -> None:
        self.adapter: Any = None
        self.phases: List[Any] = []
        self.batches: List[Any] = []
        self.baseline_bytes = 0
        self.trainer: Any = None
        self.source: Any = None
        self.steps = 0

    def prepare(self, adapter_file: str, job: Dict[str, Any]) -> Dict[str, Any]:
        """Import the adapter and its codebase, build the model, convert the shared batches."""
        from bench.worker import probe
        from bench.worker.api import Job
        from bench.worker.batches import load_batches

        module = load_module(adapter_file)
        self.baseline_bytes = probe.host_memory_bytes("VmRSS")
        self.adapter = module.Adapter(Job(**job))
        self.batches = load_batches(job["batches"], job["rank"], job["world_size"])
        self.adapter.prepare()
        self.source = source = self._source(job)
        self.phases = probe.phases_of(self.adapter, source)
        if job.get("schedule"):
            from bench.worker.training import Trainer

            self.trainer = Trainer(self.adapter, self.phases, source)
        return {"codebase_version": str(self.adapter.version), "source": source_folder(self.adapter.package)}

    def _source(self, job: Dict[str, Any]) -> Any:
        """Where the data phase takes its batches from."""
        pipeline = self.adapter.job.workload["input"]["mode"] == "pipeline"
        if job.get("schedule"):
            from bench.worker.batches import load_batches
            from bench.worker.training import OwnFeed, SharedFeed, images_of, load_schedule

            if pipeline:
                return OwnFeed(self.adapter)
            own = load_schedule(**job["schedule"])[job["rank"] :: job["world_size"]]
            return SharedFeed(self.adapter, own, images_of(load_batches(job["batches"], 0, 1)))
        if pipeline:
            return iter(self.adapter.pipeline())
        return Rotation([self.adapter.convert(batch) for batch in self.batches])

    def describe(self) -> Dict[str, Any]:
        data = self.adapter.load(self.adapter.convert(self.batches[0]))
        return {"description": dataclasses.asdict(self.adapter.describe(data))}

    def audit(self, shake: bool = False) -> Dict[str, Any]:
        """Take the audited steps. What is timed after them would not start from the weights that were given."""
        from bench.worker.audit import audit

        return {"audit": audit(self.adapter, self.batches, shake)}

    def keep(self, state: str) -> Dict[str, Any]:
        """Write what the arm is before its first step, for `look`."""
        from bench.worker.audit import keep

        keep(self.adapter, f"{state}.{self.adapter.job.rank}")
        return {}

    def look(self, state: str) -> Dict[str, Any]:
        """Take some steps more, watched, after the timed ones."""
        from bench.worker.audit import look

        if isinstance(self.source, Rotation):
            self.source.seek(1, 1)
        kept = f"{state}.{self.adapter.job.rank}"
        seen = look(self.adapter, self.batches, kept, self.source)
        return {"look": {**seen, "taken": self.steps} if seen else {}}

    def run_block(
        self,
        steps: int,
        settle: int,
        first: Optional[int] = None,
        hold: bool = False,
        found: Optional[int] = None,
    ) -> Dict[str, Any]:
        """Time steps.

        ``first``: number of the first timed step's batch, where the batches are shared. ``hold``: with learning rate 0,
        from now on. ``found``: with all detections of this step, from 0.
        """
        from bench.worker import probe

        if hold:
            self.adapter.scale_learning_rate(0.0)
        batches: List[int] = []
        if first is not None and isinstance(self.source, Rotation):
            batches = self.source.seek(first - settle, settle + steps)[settle:]
        reply = probe.run_block(self.adapter, self.phases, steps, settle, found)
        self.steps += settle + steps
        reply["done"]["steps"] = self.steps
        return {**reply, "batches": batches}

    def respond(self, batch: int) -> Dict[str, Any]:
        """Answer a request for the detections of one shared batch; who asks takes the time."""
        from bench.worker import probe

        if isinstance(self.source, Rotation):
            self.source.seek(batch, 1)
        probe.run_steps(self.phases, 1, before=lambda: None)
        self.adapter.synchronize()
        return {}

    def phase_pass(self, steps: int) -> Dict[str, Any]:
        from bench.worker import probe

        seconds = probe.phase_pass(self.adapter, self.phases, steps)
        averaging = probe.averaging_pass(self.adapter, self.phases, seconds.get("backward", ()))
        return {"phases": seconds, "averaging": averaging}

    def operator_pass(self) -> Dict[str, Any]:
        from bench.worker import probe

        return {"seconds": probe.operator_pass(self.adapter, self.phases)}

    def peak(self) -> Dict[str, Any]:
        return {"flops_per_s": self.adapter.peak_flops_per_s()}

    def memory_pass(self, steps: int) -> Dict[str, Any]:
        from bench.worker import probe

        memory = probe.memory_pass(self.adapter, self.phases, steps)
        return {"memory": {"host_baseline_bytes": self.baseline_bytes, **memory}}

    def train(self, steps: int, state: str) -> Dict[str, Any]:
        """Take steps, then write the state, so that what is answered is never lost."""
        reply: Dict[str, Any] = self.trainer.train(steps)
        self.adapter.save_state(state + ".tmp")
        os.replace(state + ".tmp", state)
        reply["memory"]["host_baseline_bytes"] = self.baseline_bytes
        return reply

    def load(self, state: str, step: int) -> Dict[str, Any]:
        """Go on where another process was after so many steps."""
        self.adapter.load_state(state)
        self.trainer.step = step
        return {}

    def predict(self, path: str) -> Dict[str, Any]:
        from bench.worker import probe
        from bench.worker.batches import each_batch

        folder = self.adapter.job.evaluation
        batches = each_batch(folder, 0, 1) if folder else self.batches
        return {"predictions": probe.predict(self.adapter, batches, path)}

    def save(self, path: str) -> Dict[str, Any]:
        self.adapter.save_weights(path)
        return {}

    def export(self, path: str) -> Dict[str, Any]:
        """Write the model as ONNX."""
        self.adapter.export(path)
        return {}

    def bye(self) -> Dict[str, Any]:
        if self.adapter is not None:
            self.adapter.close()
        return {}


MESSAGES: Dict[str, Callable[..., Dict[str, Any]]] = {
    name: getattr(Worker, name)
    for name in (
        "prepare",
        "describe",
        "audit",
        "keep",
        "look",
        "run_block",
        "respond",
        "phase_pass",
        "operator_pass",
        "memory_pass",
        "peak",
        "train",
        "load",
        "predict",
        "save",
        "export",
        "bye",
    )
}


def load_module(path: str) -> Any:
    """Import an adapter from its file; modules beside it can be imported by their plain names."""
    sys.path.append(os.path.dirname(path))
    spec = importlib.util.spec_from_file_location("bench_adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_adapter"] = module  # so that classes defined there can be found by their module
    spec.loader.exec_module(module)
    return module


def source_folder(package: str) -> Optional[str]:
    spec = importlib.util.find_spec(package) if package else None
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else None


def answer(worker: Worker, message: Dict[str, Any]) -> Dict[str, Any]:
    """The reply to a message, once the codebase's threads rest; whatever goes wrong in it becomes an `error` reply."""
    from bench.worker.probe import WHAT_TO_CHANGE, NonFiniteLoss, rest

    kind = message["type"]
    if kind not in MESSAGES:
        return {"type": "error", "reason": "protocol", "message": f"unknown message '{kind}'"}
    fields = {name: value for name, value in message.items() if name not in ("type", "version")}
    try:
        reply = {"type": kind, **MESSAGES[kind](worker, **fields)}
        if kind != "respond":
            rest()
        return reply
    except NonFiniteLoss as error:
        return {"type": "error", "reason": "nan", "message": str(error)}
    except FloatingPointError as error:  # of a codebase that looks at its own losses
        traceback.print_exc()
        sys.stderr.flush()
        return {"type": "error", "reason": "nan", "message": f"{error}{WHAT_TO_CHANGE}"}
    except MemoryError:
        return {"type": "error", "reason": "oom", "message": "out of memory (MemoryError)"}
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        out_of_memory = type(error).__name__ == "OutOfMemoryError"  # torch.cuda's
        text = "{}: {}".format(type(error).__name__, str(error).strip().split("\n")[0])
        return {"type": "error", "reason": "oom" if out_of_memory else "exception", "message": text}


def serve(channel: Channel) -> None:
    """Answer messages to one worker; does not return."""
    channel.die_with_session()
    channel.send(type="hello", rank=rank_of_environment(), pid=os.getpid(), python=platform.python_version())
    worker = Worker()
    for message in messages(channel):
        channel.send(**answer(worker, message))
        if message["type"] == "bye":
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # a framework's exit handlers may hang; nothing of ours is left to do


def messages(channel: Channel) -> Iterator[Dict[str, Any]]:
    """Messages until the session is gone, which ends the process."""
    while True:
        try:
            yield channel.receive()
        except EOFError:
            os._exit(1)
        except ProtocolError as error:
            channel.send(type="error", reason="protocol", message=str(error))


def serve_forks(channel: Channel, modules: Sequence[str]) -> None:
    """Import once, then fork a worker for every `fork`; `poll` asks for the exit code of one. Does not return.

    Nothing is run between the imports and a fork, so that no thread pool exists that a child would lack.
    """
    for module in modules:
        with contextlib.suppress(ImportError):  # a worker that needs it will say so
            importlib.import_module(module)
    channel.send(type="hello", rank=0, pid=os.getpid(), python=platform.python_version())
    for message in messages(channel):
        if message["type"] == "fork":
            pid = os.fork()
            if not pid:
                channel.close()
                become_worker(message)
            channel.send(type="fork", pid=pid)
        elif message["type"] == "poll":
            ended, status = os.waitpid(message["pid"], os.WNOHANG)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            channel.send(type="poll", code=code if ended else None)
        else:  # bye
            os._exit(0)


def become_worker(message: Dict[str, Any]) -> None:
    """A forked process takes the place of one that would have been started with this log, folder and path."""
    os.setsid()
    log = os.open(message["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(message["folder"])
    displace_memory()
    own = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [*message["path"], *(entry for entry in sys.path if entry not in own)]
    os.environ.update({SOCKET_VARIABLE: message["socket"], "PYTHONPATH": os.pathsep.join(message["path"])})
    serve(Channel(message["socket"]))


_displaced: List[Any] = []


def displace_memory() -> None:
    """Let memory from here on lie at addresses of this process's own.

    A process that is started gets random ones. Forks of one process get the same ones each time, so that what its
    layout costs a revision (some per cent of a step) would not differ between launches and pass for its speed.
    """
    draw = random.SystemRandom()
    _displaced.extend(bytearray(draw.randrange(1, 1 << 16)) for _ in range(draw.randrange(64)))
    _displaced.append(mmap.mmap(-1, mmap.PAGESIZE * draw.randrange(1, 4096)))


def main() -> None:
    affinity = os.environ.get(AFFINITY_VARIABLE)
    if affinity:  # before numpy or a framework counts the processors
        os.sched_setaffinity(0, {int(cpu) for cpu in affinity.split(",")})
    channel = Channel(os.environ[SOCKET_VARIABLE])
    preload = os.environ.pop(PRELOAD_VARIABLE, "")
    if preload:
        serve_forks(channel, preload.split())
    serve(channel)


if __name__ == "__main__":
    main()
