"""Fewer bits where a detector bears it: convolutions and linear layers of backbone and encoder.

Heads, box arithmetic and sampling stay in single precision: rounded to 8 bits they move boxes by
many pixels.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detrlab.errors import refusing
from detrlab.export.deploy import SCOPE
from detrlab.export.packages import needs

PARTS = ("network.backbone", "network.encoder")
KINDS = ("Conv", "MatMul", "Gemm")


def to_float16(source: Path, path: Path) -> None:
    """Write an ONNX file that keeps the weights of backbone and encoder in 16 bits.

    They are computed with in single precision: activations of 16 bits, too, would change which
    queries the small detectors choose.

    Raises:
        UserError: a package is missing.
    """
    onnx = needs("onnx")
    model = onnx.load(source)
    chosen = set(split_nodes(model)[0])
    used = {name for node in model.graph.node if node.name in chosen for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in used or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        name = tensor.name
        half = onnx.numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.float16"))
        casts.append(
            onnx.helper.make_node(
                "Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def to_int8(source: Path, path: Path, pictures: Iterable[Mapping[str, Tensor]]) -> None:
    """Write an ONNX file whose backbone and encoder compute with 8 bits where that is faster.

    Args:
        source: the ONNX file in single precision.
        path: of the result.
        pictures: inputs like those that it will get; they decide the range of every layer.

    Raises:
        UserError: a package is missing, or the quantisation fails.
    """
    # Loading nncf makes PyTorch report that there is no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    onnx = needs("onnx")
    nncf = needs("nncf", "int8")
    model = onnx.load(source)
    _, others = split_nodes(model)
    feeds = [{name: each.numpy() for name, each in one.items()} for one in pictures]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    silent = contextlib.redirect_stdout(io.StringIO())  # its progress bars
    with refusing("int8: nncf cannot quantise it"), silent:
        lowered = nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )
    del lowered.metadata_props[:]
    lowered.metadata_props.extend(model.metadata_props)
    onnx.save(lowered, path)


def split_nodes(model: Any) -> tuple[list[str], list[str]]:
    """Names of the nodes that bear fewer bits, and of all others."""
    chosen: list[str] = []
    others: list[str] = []
    for node in model.graph.node:
        bears = node.op_type in KINDS and any(each.startswith(PARTS) for each in scopes_of(node))
        (chosen if bears else others).append(node.name)
    return chosen, others


def scopes_of(node: Any) -> list[str]:
    """The modules that a node belongs to, outermost first."""
    for each in node.metadata_props:
        if each.key == SCOPE:
            return list(map(str, ast.literal_eval(each.value)))
    return []
