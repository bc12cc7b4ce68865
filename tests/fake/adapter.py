"""A codebase that does what its options say, so that tests can see what the harness makes of it.

Options: `step_s` time of a step (slept, or burnt with `busy: true`), `noise` (relative standard deviation), `drift`
(relative growth per step), `crash_at`, `kill_at`, `hang_at`, `raise_at`, `nan_at` (step number, counted from 0 over the
launch, warm-up included), `prepare` (`raise`, `hang`, `exit`), `garbage` (bytes printed on standard output in every
step), `memory_mb` (held during a step), `threads` (said to be used),
`child` (start a process in a session of its own that never ends), `orphan` (the same, without its environment and its
parent), `says` (a text in losses, description and, with `raise_at`, the exception), `finds` (`nan`, `negative`,
`foreign` or `label`: detections that cannot be), `pid_file`, `learns` (its one weight moves with the
images it sees, and the more it has moved the better its boxes fit).
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.worker.api import Adapter as Base
from bench.worker.api import Batch, Description, Detections


class Adapter(Base):
    version = "0"

    def prepare(self) -> None:
        self.options = dict(self.job.options)
        self.rng = np.random.default_rng(
            [self.job.workload["seed"], os.getpid()]
        )  # a process has noise of its own
        self.steps = 0
        self.weight = 0.0
        if self.job.weights:
            self.load_state(self.job.weights)
        self.factor = 1.0
        if "pid_file" in self.options:
            with open(self.options["pid_file"], "a") as file:
                file.write(f"{os.getpid()}\n")
        if self.options.get("child"):
            note = f"open({self.options['child']!r}, 'a').write(f'{{os.getpid()}}\\n')"
            code = f"import os, time; {note}; time.sleep(1000)"
            subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        if self.options.get("orphan"):
            code = (
                "import os, sys, time\nif os.fork(): os._exit(0)\nos.setsid()\n"
                "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\ntime.sleep(1000)"
            )
            subprocess.run([sys.executable, "-c", code, self.options["orphan"]], env={}, check=True)
        fault = self.options.get("prepare")
        if fault == "raise":
            raise RuntimeError("prepare failed as asked")
        if fault == "hang":
            time.sleep(1000)
        if fault == "exit":
            os._exit(7)

    def describe(self, data: Any) -> Description:
        return Description(
            parameters=1,
            input_shape=list(data.images.shape),
            loss_terms=["loss" + self._says()],
            threads=self.options.get("threads", 1),
        )

    def convert(self, batch: Batch) -> Batch:
        return batch

    def pipeline(self) -> Any:
        while True:
            yield None

    def forward(self, data: Any) -> float:
        self._step()
        if "learns" in self.options:
            self.weight += self.factor * self.options["learns"] * (1 + float(data.images.mean()) / 100)
        return math.nan if self.options.get("nan_at") == self.steps - 1 else 1 / (1 + self.weight)

    def backward(self, losses: Any) -> None: ...

    def optimizer_step(self) -> None: ...

    def ema_update(self) -> None:
        time.sleep(self.options.get("ema_s", 0.0))

    def scale_learning_rate(self, factor: float) -> None:
        self.factor = factor

    def loss_values(self, losses: float) -> dict[str, float]:
        return {"loss" + self._says(): losses}

    def _says(self) -> str:
        return self.options.get("says", "").encode().decode("unicode_escape")

    def network(self, data: Any) -> Any:
        self._step()
        return data

    def postprocess(self, raw: Any, data: Any) -> Sequence[Any]:
        return raw.image_ids

    def _fitting(self, batch: Batch) -> list[Detections]:
        """The ground truth in the pixels of the file, each box too wide by what was not yet learned."""
        found = []
        for index, image in enumerate(batch.image_ids):
            height, width = batch.original_sizes[index]
            boxes = (
                batch.boxes[index] * (batch.original_sizes[index] / batch.image_sizes[index])[[1, 0, 1, 0]]
            )
            boxes[:, 2] += (boxes[:, 2] - boxes[:, 0]) / (1 + self.weight)
            masks = np.zeros((len(boxes), height, width), bool)
            for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
                mask[y1 : y2 + 1, x1 : x2 + 1] = True
            found.append(Detections(int(image), boxes, np.full(len(boxes), 0.5), batch.labels[index], masks))
        return found

    def detections(self, processed: Sequence[Any], data: Batch) -> list[Detections]:
        if "learns" in self.options:
            return self._fitting(data)
        finds = self.options.get("finds")
        mask = np.zeros((1, 4, 4), bool)
        mask[0, 1:3, 1:3] = True
        right = {"nan": math.nan, "negative": 0}.get(finds, 3)
        box = np.array([[1, 1, right, 3]], np.float32)
        label, shift = -(finds == "label"), 10**6 * (finds == "foreign")
        return [
            Detections(int(image) + shift, box, np.array([0.5], np.float32), np.array([label]), mask)
            for image in processed
        ]

    def save_weights(self, path: str) -> None:
        np.savez(path, weight=self.weight)

    def save_state(self, path: str) -> None:
        with open(path, "wb") as file:
            np.savez(file, weight=self.weight)

    def load_state(self, path: str) -> None:
        with np.load(path) as file:
            self.weight = float(file["weight"])

    def _step(self) -> None:
        options, step = self.options, self.steps
        self.steps += 1
        if "garbage" in options:
            sys.stdout.write(
                options["garbage"].encode().decode("unicode_escape") * 100 + '\n{"type": "run_block"}\n'
            )
            sys.stdout.flush()
        if options.get("crash_at") == step:
            os._exit(9)
        if options.get("kill_at") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.get("raise_at") == step:
            raise ValueError("raised as asked" + self._says())
        if options.get("hang_at") == step:
            time.sleep(1000)
        held = np.ones(int(options.get("memory_mb", 0) * 2**20 / 8))
        seconds = options.get("step_s", 0.0) * (1 + options.get("drift", 0.0) * step)
        seconds *= max(0.0, 1 + options.get("noise", 0.0) * self.rng.standard_normal())
        if options.get("busy"):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
        elif seconds:
            time.sleep(seconds)
        del held
