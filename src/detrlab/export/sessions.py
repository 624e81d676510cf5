"""Run an ONNX or OpenVINO file: named tensors in, named tensors out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from detrlab.errors import UserError, lacks_memory
from detrlab.export.packages import needs
from detrlab.export.safety import check_onnx

SUFFIXES = (".onnx", ".xml")
"""ONNX, and OpenVINO's pair of ``.xml`` and ``.bin``."""
WEIGHTS = (1, 2, 3, 10, 11)
"""ONNX's types of numbers that are weights: float32, uint8, int8, float16, float64."""


KEY = "detrlab"
"""Of the metadata in which an exported file describes itself."""


class Port(NamedTuple):
    """An input or output: its name, its shape (None where it is dynamic) and numpy's dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Session(Protocol):
    """A file that is ready to run."""

    @property
    def inputs(self) -> Sequence[Port]:
        """What it takes."""

    @property
    def outputs(self) -> Sequence[Port]:
        """What it gives."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says about itself."""

    @property
    def parameters(self) -> int:
        """Numbers in its weights."""

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One inference."""


def open_session(path: str | Path, threads: int | None = None) -> Session:
    """Open an exported file; nothing in it is executed but the operators of its runtime.

    Args:
        path: ``.onnx`` or ``.xml``.
        threads: that it may use; None takes torch's number.

    Raises:
        UserError: the file is missing, damaged, refused, or its runtime is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no exported detector: its name should end in .onnx or .xml")
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    threads = torch.get_num_threads() if threads is None else threads
    if path.suffix.lower() == ".xml":
        return _OpenVino(path, threads)
    return _Onnx(path, threads)


class _Onnx:
    def __init__(self, path: Path, threads: int) -> None:
        model = check_onnx(path)
        self.parameters = sum(
            int(np.prod(each.dims)) for each in model.graph.initializer if each.data_type in WEIGHTS
        )
        runtime = needs("onnxruntime")
        _bound_memory()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # its exceptions say it; the log would print names raw
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Waiting threads would take the cores from other programs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self.inputs = tuple(_onnx_port(each) for each in self._session.get_inputs())
            self.outputs = tuple(_onnx_port(each) for each in self._session.get_outputs())
            self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # the runtime has a dozen kinds; names may be no text
            raise _refused(path, error) from None
        self.path = path

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One inference."""
        names = [each.name for each in self.outputs]
        try:
            found = self._session.run(names, {name: each.numpy() for name, each in feeds.items()})
        except Exception as error:
            raise _refused(self.path, error) from None
        return {name: torch.from_numpy(each) for name, each in zip(names, found, strict=True)}


class _OpenVino:
    def __init__(self, path: Path, threads: int) -> None:
        openvino = needs("openvino")
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise UserError(f"{path}: its weights are missing: {weights.name} should lie beside it")
        try:
            core = openvino.Core()
            model = core.read_model(path, weights)
            self.inputs = tuple(map(_openvino_port, model.inputs))
            self.outputs = tuple(map(_openvino_port, model.outputs))
            own = model.has_rt_info(KEY)
            self.metadata = {KEY: model.get_rt_info(KEY).astype(str)} if own else {}
            self.parameters = sum(
                int(np.prod(node.shape))
                for node in model.get_ops()
                if node.get_type_name() == "Constant"
                and (node.get_element_type().is_real() or node.get_element_type().size == 1)
            )
            # What is certified is computed in single precision, whatever the processor offers.
            settings = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            }
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise _refused(path, error) from None
        self.path = path

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One inference."""
        try:
            found = self._compiled({name: each.numpy() for name, each in feeds.items()})
            return {
                each.name: torch.from_numpy(np.array(found[each.name])) for each in self.outputs
            }
        except Exception as error:
            raise _refused(self.path, error) from None


def _refused(path: Path, error: Exception) -> UserError:
    reason = "memory ran out" if lacks_memory(error) else " ".join(str(error).split())
    return UserError(f"{path} cannot be run: {reason[:300]}")


def _onnx_port(port: Any) -> Port:
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    shape = tuple(side if isinstance(side, int) else None for side in port.shape)
    return Port(port.name, shape, dtype)


def _openvino_port(port: Any) -> Port:
    shape = tuple(
        side.get_length() if side.is_static else None for side in port.get_partial_shape()
    )
    names = {"f32": "float32", "u8": "uint8", "i64": "int64", "i32": "int32", "f16": "float16"}
    kind = port.get_element_type().get_type_name()
    return Port(port.get_any_name(), shape, names.get(kind, kind))


@functools.cache
def _bound_memory() -> None:
    """All ONNX sessions of this process together take at most half of the machine's memory.

    A graph from somebody else may ask for any size.
    """
    import psutil

    runtime = needs("onnxruntime")
    runtime.set_default_logger_severity(4)  # as that of each session
    runtime.create_and_register_allocator(
        runtime.OrtMemoryInfo(
            "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
        ),
        # -1 leaves the runtime's own choice.
        runtime.OrtArenaCfg(
            {
                "max_mem": psutil.virtual_memory().total // 2,
                "arena_extend_strategy": 0,
                "initial_chunk_size_bytes": -1,
                "max_dead_bytes_per_chunk": -1,
            }
        ),
    )
