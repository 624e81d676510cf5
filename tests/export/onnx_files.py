"""Small ONNX files: outputs that are constants, whatever the picture."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


def constant_file(path, outputs, *, inputs=None, metadata=None, nodes=(), opset=18):
    """Write a file that answers every picture with the same arrays.

    Args:
        path: of the file.
        outputs: arrays by name.
        inputs: (dtype, shape) by name; a (1, 3, 64, 96) float32 picture if not given.
        metadata: of the file.
        nodes: further nodes.
        opset: of the file.
    """
    inputs = inputs or {"images": ("float32", (1, 3, 64, 96))}
    graph = helper.make_graph(
        [
            *(helper.make_node("Identity", [f"{name}.value"], [name]) for name in outputs),
            *nodes,
        ],
        "constants",
        [
            helper.make_tensor_value_info(n, KINDS[kind], shape)
            for n, (kind, shape) in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, KINDS[str(each.dtype)], each.shape)
            for name, each in outputs.items()
        ],
        [numpy_helper.from_array(each, f"{name}.value") for name, each in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def picture(height=128, width=192):
    import torch

    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=draw, dtype=torch.uint8)


def detr_line(path, **more):
    """Labels, boxes and scores, as RT-DETR, D-FINE and DEIM are exported."""
    outputs = {
        "labels": np.array([[2, 0]]),
        "boxes": np.array([[[10, 20, 30, 60], [0, 0, 50, 40]]], np.float32),
        "scores": np.array([[0.4, 0.9]], np.float32),
    }
    inputs = {"images": ("float32", (1, 3, 64, 96)), "orig_target_sizes": ("int64", (1, 2))}
    return constant_file(path, outputs, inputs=inputs, **more)


def rf_detr(path, logits, boxes):
    return constant_file(path, {"dets": boxes, "labels": logits})


def yolo(path, rows, **more):
    return constant_file(path, {"output0": rows}, **more)
