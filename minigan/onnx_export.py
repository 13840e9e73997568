"""A generator as an ONNX model, for programs that know nothing of minigan.

The layers become a chain of ONNX nodes. minigan's images are N H W C and ONNX's operators take N C H W, so there is one
transposition where the chain first has rows and columns, and one at its end. Filters are permuted once, here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigan import models, nn
from minigan.ops import geometry
from minigan.training.errors import UserError
from minigan.version import __version__

# The lowest that has all of these operators in their present form, and the file format that came with it: what an old
# program reads, a new one reads too.
OPSET = 17
IR_VERSION = 8


def onnx_model(generator: models.Generator, name: str, system: str) -> Any:
    """The onnx.ModelProto of a generator in evaluation: batch norm by its running statistics.

    Input z (N, *z_shape), output images (N, H, W, 3), clipped to the generator's range of pixels; both float32, for any
    N. The metadata hold name, system, minigan's version, how z is distributed, and the values of black and white.

    Raises UserError where onnx is not installed, and TypeError for a layer that has no function below.
    """
    onnx = _onnx()
    graph = _Graph(generator.z_shape)
    _channels_first(graph)
    for place, layer in generator.named_children():
        if type(layer) not in FORMS:
            known = ", ".join(form.__name__ for form in FORMS)
            raise TypeError(f"onnx_model: layer {place}: expected one of {known}, got {type(layer).__name__}")
        graph.layer = place
        FORMS[type(layer)](graph, layer)
    graph.layer = "pixels"
    black, white = generator.pixels
    graph.add("Clip", {"black": np.float32(black), "white": np.float32(white)})
    _channels_last(graph)
    graph.nodes[-1]["outputs"] = ["images"]

    def described(value: str, shape: tuple[int, ...]) -> Any:
        return onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["N", *shape])

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node(**node) for node in graph.nodes],
            name,
            [described("z", generator.z_shape)],
            [described("images", graph.shape)],
            [onnx.numpy_helper.from_array(value, key) for key, value in graph.constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="minigan",
        producer_version=__version__,
    )
    details = {
        "name": name,
        "system": system,
        "minigan_version": __version__,
        "z": "normal, mean 0, deviation 1" if generator.normal else "uniform in (-1, 1)",
        "pixels": f"{black:g} to {white:g}",
    }
    onnx.helper.set_model_props(model, details)
    return model


def _onnx() -> Any:
    try:
        import onnx.helper
        import onnx.numpy_helper
    except ModuleNotFoundError:
        raise UserError("onnx is not installed; install it with: pip install 'minigan[onnx]'") from None
    return onnx


@dataclass
class _Graph:
    """A chain of nodes while it grows.

    shape: of the chain's present end, without N, in minigan's order: (H, W, C), which ONNX has as C H W, or (in,).
    layer: the name of the layer that is being added; its constants bear it, as they do in a checkpoint.
    """

    shape: tuple[int, ...]
    layer: str = ""
    end: str = "z"
    nodes: list[dict[str, Any]] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, op: str, constants: Mapping[str, Any] | None = None, **attributes: Any) -> None:
        """One node, whose inputs are the chain's end and then `constants` in their order; None: an input left out.

        A layer's state_dict() has the order that ONNX wants: weight, bias; gamma, beta, mean, variance.
        """
        inputs = [self.end]
        for name, value in (constants or {}).items():
            inputs.append("" if value is None else f"{self.layer}.{name}")
            if value is not None:
                self.constants[inputs[-1]] = np.asarray(value)
        self.end = f"{len(self.nodes)}.{op}"
        self.nodes.append({"op_type": op, "inputs": inputs, "outputs": [self.end], "name": self.end, **attributes})


def _channels_first(graph: _Graph) -> None:
    if len(graph.shape) == 3:
        graph.add("Transpose", perm=[0, 3, 1, 2])


def _channels_last(graph: _Graph) -> None:
    if len(graph.shape) == 3:
        graph.add("Transpose", perm=[0, 2, 3, 1])


def _linear(graph: _Graph, layer: nn.Linear) -> None:
    graph.add("Gemm", layer.state_dict(), transB=1)
    graph.shape = layer.weight.shape[:1]


def _reshape(graph: _Graph, layer: nn.Reshape) -> None:
    _channels_last(graph)
    graph.shape = tuple(layer.shape)
    graph.add("Reshape", {"shape": np.array([0, *graph.shape], np.int64)})  # 0: N, as it comes
    _channels_first(graph)


def _conv2d(graph: _Graph, layer: nn.Conv2d) -> None:
    g = geometry.convolution("Conv2d", (1, *graph.shape), layer.weight.shape, layer.stride, layer.padding)
    bottom, right = _beyond(g)
    graph.add(
        "Conv", _filters(layer), strides=[g.stride_h, g.stride_w], pads=[g.top, g.left, max(bottom, 0), max(right, 0)]
    )
    graph.shape = g.p, g.q, g.k


def _conv_transpose2d(graph: _Graph, layer: nn.ConvTranspose2d) -> None:
    g = geometry.transposed(
        "ConvTranspose2d", (1, *graph.shape), layer.weight.shape, layer.stride, layer.padding, layer.output_padding
    )
    bottom, right = _beyond(g)
    graph.add(
        "ConvTranspose",
        _filters(layer),
        strides=[g.stride_h, g.stride_w],
        pads=[g.top, g.left, max(bottom, 0), max(right, 0)],
        output_padding=[max(-bottom, 0), max(-right, 0)],
    )
    graph.shape = g.h, g.w, g.c


def _filters(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, np.ndarray]:
    """Both of ONNX's convolutions have the taps last, where minigan has the channels of the wide side last."""
    state = layer.state_dict()
    return {**state, "weight": state["weight"].transpose(0, 3, 1, 2)}


def _beyond(g: geometry.Geometry) -> geometry.Pair:
    """How far the last filter position reaches beyond the bottom and the right edge of the (H, W) side.

    That much is padded by a convolution and cropped by a transposed one; below 0, the latter adds rows there.
    """
    return (g.p - 1) * g.stride_h + g.r - g.top - g.h, (g.q - 1) * g.stride_w + g.s - g.left - g.w


def _batch_norm2d(graph: _Graph, layer: nn.BatchNorm2d) -> None:
    graph.add("BatchNormalization", layer.state_dict(), epsilon=layer.epsilon)


def _upsample_nearest2d(graph: _Graph, layer: nn.UpsampleNearest2d) -> None:
    scales = np.array([1, 1, layer.scale, layer.scale], np.float32)
    # Output pixel i is input pixel floor(i / scale).
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.add("Resize", {"region": None, "scales": scales}, **how)
    height, width, channels = graph.shape
    graph.shape = height * layer.scale, width * layer.scale, channels


def _leaky_relu(graph: _Graph, layer: nn.LeakyReLU) -> None:
    graph.add("LeakyRelu", alpha=layer.slope)


def _relu(graph: _Graph, layer: nn.ReLU) -> None:
    graph.add("Relu")


def _elu(graph: _Graph, layer: nn.ELU) -> None:
    graph.add("Elu", alpha=layer.alpha)


def _tanh(graph: _Graph, layer: nn.Tanh) -> None:
    graph.add("Tanh")


FORMS: dict[type[nn.Module], Callable[[_Graph, Any], None]] = {
    nn.BatchNorm2d: _batch_norm2d,
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    nn.ELU: _elu,
    nn.LeakyReLU: _leaky_relu,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.Reshape: _reshape,
    nn.Tanh: _tanh,
    nn.UpsampleNearest2d: _upsample_nearest2d,
}
