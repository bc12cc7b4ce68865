"""ONNX Runtime and OpenVINO behind one small face, each with its own quantiser; imported where they are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter

Feeds = Sequence[Mapping[str, np.ndarray]]


#: The first opset whose int8 operators have a scale for each channel.
PER_CHANNEL_OPSET = 13


class Runtime:
    """A graph that is ready to run. ``library``: versions and settings that decide which kernels run."""

    library: Mapping[str, Any]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        raise NotImplementedError


class OnnxRuntime(Runtime):
    def __init__(self, path: Path, threads: int, device: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this build of onnxruntime has no {provider}: install onnxruntime-gpu")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        self.names = [output.name for output in self.session.get_outputs()]
        self.library = {
            "onnxruntime": onnxruntime.__version__,
            "provider": self.session.get_providers()[0],
            "graph optimisation": options.graph_optimization_level.name,
            "threads": threads,
        }

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(self.names, dict(feed)), strict=True))

    @staticmethod
    def quantise(source: Path, target: Path, feeds: Feeds) -> None:
        """Write a graph whose convolutions and products are int8, calibrated on ``feeds`` (`quantize_static`, QDQ)."""
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.feeds: Iterator[Mapping[str, np.ndarray]] = iter(feeds)

            def get_next(self) -> Mapping[str, np.ndarray] | None:
                return next(self.feeds, None)

        prepared = target.with_suffix(".float.onnx")
        model = onnx.load(str(source))
        if model.opset_import[0].version < PER_CHANNEL_OPSET:
            source = target.with_suffix(".newer.onnx")
            onnx.save(onnx.version_converter.convert_version(model, PER_CHANNEL_OPSET), str(source))
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
        )


class OpenVino(Runtime):
    def __init__(self, path: Path, threads: int, device: str) -> None:
        import openvino

        if device != "cpu":
            raise ValueError("this adapter runs OpenVINO on the CPU only; set device: cpu")
        core = openvino.Core()
        # Float32 arithmetic, as the workload says: without it OpenVINO takes bfloat16 where the CPU has it.
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.names = [output.get_any_name() for output in self.compiled.outputs]
        self.library = {"openvino": openvino.__version__, **settings}

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.request.infer(dict(feed))
        # Outputs are in the request's memory, which the next call overwrites.
        return {name: np.array(found[place]) for place, name in enumerate(self.names)}

    @staticmethod
    def quantise(source: Path, target: Path, feeds: Feeds) -> None:
        """Write a graph quantised by NNCF, OpenVINO's own quantiser, calibrated on ``feeds``."""
        import nncf
        import openvino

        nncf.set_log_level(40)
        model = nncf.quantize(
            openvino.Core().read_model(str(source)),
            nncf.Dataset(list(feeds)),
            subset_size=len(feeds),
        )
        openvino.save_model(model, str(target), compress_to_fp16=False)


RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
#: What the quantised graph of a runtime is written as.
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}


def quantised(runtime: str, source: Path, feeds: Feeds, folder: Path) -> Path:
    """The int8 graph of a file, made once in ``folder`` for the same file and the same images."""
    content = hashlib.sha256(source.read_bytes())
    for feed in feeds:
        for value in feed.values():
            content.update(value.tobytes())
    target = folder / f"int8-{runtime}-{content.hexdigest()[:16]}{SUFFIXES[runtime]}"
    done = target.with_suffix(".done")
    if not done.exists():
        RUNTIMES[runtime].quantise(source, target, feeds)
        done.write_text(json.dumps({"images": len(feeds)}))
    return target


# -- the file itself -----------------------------------------------------------------------------------------


def shape_of(value: Any) -> list[int | None]:
    """Sizes of an input or output; None for one that is free."""
    return [
        size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
    ]


def with_shape(model: onnx.ModelProto, shape: Sequence[int | None], target: Path) -> Path:
    """Write a graph whose image input has this shape, None for a size that is free."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    sizes = changed.graph.input[0].type.tensor_type.shape.dim
    for place, size in enumerate(shape):
        sizes[place].Clear()
        if size is None:
            sizes[place].dim_param = f"free_{place}"
        else:
            sizes[place].dim_value = size
    del changed.graph.value_info[:]
    onnx.save(changed, str(target))
    return target


def parameters(model: onnx.ModelProto) -> int:
    """Numbers in the weights of the graph: its floating-point constants with more than one value."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return sum(
        int(np.prod(one.dims))
        for one in model.graph.initializer
        if one.data_type in kinds and np.prod(one.dims) > 1
    )


def flops(model: onnx.ModelProto) -> int | None:
    """Of convolutions and matrix products for the shapes in the file, a multiply-add counted as two; None where the
    shapes are not known."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: shape_of(value) for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    shapes |= {one.name: list(one.dims) for one in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        out, second = shapes.get(node.output[0]), shapes.get(node.input[1])
        if not out or not second or None in out or None in second:
            return None
        if node.op_type == "Conv":
            inner = int(np.prod(second[1:]))
        else:
            transposed = any(one.name == "transB" and one.i for one in node.attribute)
            inner = second[-1] if transposed or len(second) == 1 else second[-2]
        total += 2 * int(np.prod(out)) * inner
    return total
