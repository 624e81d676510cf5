"""What an ONNX file from somebody else may contain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.errors import UserError
from detrlab.export.packages import needs

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_BYTES = 1 << 31
"""Protobuf reads no more."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Whose operators ONNX Runtime itself brings; others would need code from elsewhere."""


def check_onnx(path: str | Path) -> ModelProto:
    """Read an ONNX file without its external data, and refuse what a detector does not need.

    Raises:
        UserError: it is too large, damaged, reads files outside of its folder, or needs operators
            that are not built in.
    """
    onnx = needs("onnx")
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES >> 30} GiB: it was not read")
    try:
        model: ModelProto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise UserError(f"{path} is no ONNX file, or damaged ({error})") from None
    if not model.graph.output:
        raise UserError(f"{path} is no ONNX file: it has no outputs")
    own = {each.domain for each in model.functions}
    for graph in _graphs(model):
        for node in graph.node:
            if node.domain not in DOMAINS | own:
                raise UserError(
                    f"{path} needs the operator {node.domain}.{node.op_type}, which is none of "
                    "ONNX Runtime's own: export the detector with plain operators"
                )
        for tensor in getattr(graph, "initializer", ()):
            _check_place(path, tensor)
        for sparse in getattr(graph, "sparse_initializer", ()):
            for tensor in (sparse.values, sparse.indices):
                _check_place(path, tensor)
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in (attribute.t, *attribute.tensors):
                    _check_place(path, tensor)
    return model


def _graphs(model: ModelProto) -> Iterator[Any]:
    """The graph, its functions, and the branches inside of them."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [each for each in (attribute.g, *attribute.graphs) if each.node]


def _check_place(path: Path, tensor: Any) -> None:
    """Weights beside the file must lie in its folder."""
    for entry in tensor.external_data:
        if entry.key != "location":
            continue
        folder = path.parent.resolve()
        place = folder / entry.value
        try:
            inside = not place.is_symlink() and place.resolve().is_relative_to(folder)
            present = inside and place.is_file()
        except (OSError, ValueError):  # no name that a file can have
            inside = present = False
        if not inside:
            raise UserError(
                f"{path} reads its weights from {entry.value!r}, outside of its folder: refused"
            )
        if not present:
            raise UserError(f"{path}: its weights {entry.value!r} are missing beside it")
