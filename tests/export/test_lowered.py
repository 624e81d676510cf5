"""Fewer bits: which layers change, and that the others do not."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_files import KINDS

from detrlab.export import lowered
from detrlab.export.deploy import SCOPE
from detrlab.export.sessions import open_session


@pytest.fixture
def two_layers(tmp_path):
    """A convolution of the backbone, then one of a head."""
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(size=(4, channels, 1, 1)).astype(np.float32)
        for name, channels in (("first", 3), ("second", 4))
    }
    nodes = [
        helper.make_node("Conv", ["images", "first"], ["maps"], "conv1"),
        helper.make_node("Conv", ["maps", "second"], ["scores"], "conv2"),
    ]
    for node, part in zip(nodes, ("network.backbone", "network.decoder.heads.0"), strict=True):
        entry = node.metadata_props.add()
        entry.key, entry.value = SCOPE, str(["", "network", part])
    shape = ("B", 4, "H", "W")
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("images", KINDS["float32"], ("B", 3, "H", "W"))],
        [helper.make_tensor_value_info("scores", KINDS["float32"], shape)],
        [numpy_helper.from_array(each, name) for name, each in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, tmp_path / "plain.onnx")
    return tmp_path / "plain.onnx", weights


def test_only_backbone_and_encoder_bear_fewer_bits(two_layers):
    path, _ = two_layers
    assert lowered.split_nodes(onnx.load(path)) == (["conv1"], ["conv2"])


def test_16_bits_round_the_weights_of_the_backbone(two_layers, tmp_path):
    import torch

    path, weights = two_layers
    lowered.to_float16(path, tmp_path / "half.onnx")
    kinds = {
        each.name: each.data_type for each in onnx.load(tmp_path / "half.onnx").graph.initializer
    }
    assert kinds == {"first.float16": onnx.TensorProto.FLOAT16, "second": onnx.TensorProto.FLOAT}
    pixels = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = open_session(tmp_path / "half.onnx").run({"images": pixels})["scores"]
    first, second = (torch.from_numpy(each) for each in weights.values())
    maps = torch.nn.functional.conv2d(pixels, first.half().float())
    expected = torch.nn.functional.conv2d(maps, second)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = open_session(path).run({"images": pixels})["scores"]
    assert not torch.equal(found, plain)
    assert open_session(tmp_path / "half.onnx").parameters == 12 + 16


@pytest.mark.slow
def test_8_bits_leave_the_head_alone(two_layers, tmp_path):
    import torch

    pytest.importorskip("nncf")
    path, weights = two_layers
    draw = torch.Generator().manual_seed(0)
    pictures = [{"images": torch.rand(1, 3, 16, 16, generator=draw)} for _ in range(4)]
    lowered.to_int8(path, tmp_path / "int8.onnx", pictures)
    model = onnx.load(tmp_path / "int8.onnx")
    kinds = [each.data_type for each in model.graph.initializer]
    assert onnx.TensorProto.INT8 in kinds
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    np.testing.assert_array_equal(arrays["second"], weights["second"])
    found = open_session(tmp_path / "int8.onnx").run(pictures[0])["scores"]
    plain = open_session(path).run(pictures[0])["scores"]
    worst = (found - plain).abs().max() / plain.abs().max()
    assert 0 < worst < 0.05
