"""A few words for writing an ONNX graph by hand: values are names, constants are stored once."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
IR_VERSION: Final = 8
"""With this opset, what the oldest supported server (Triton 2.51) and newer ones read alike."""


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of its result."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def floats(self, values: npt.ArrayLike) -> str:
        """Return a float32 constant."""
        return self._constant(np.asarray(values, np.float32))

    def ints(self, values: npt.ArrayLike) -> str:
        """Return an int64 constant."""
        return self._constant(np.asarray(values, np.int64))

    def add(self, a: str, b: str) -> str:
        """a + b."""
        return self.op("Add", a, b)

    def sub(self, a: str, b: str) -> str:
        """a - b."""
        return self.op("Sub", a, b)

    def mul(self, a: str, b: str) -> str:
        """a * b."""
        return self.op("Mul", a, b)

    def div(self, a: str, b: str) -> str:
        """a / b."""
        return self.op("Div", a, b)

    def clip(self, x: str, low: npt.ArrayLike, high: npt.ArrayLike) -> str:
        """Keep x within bounds, which broadcast."""
        return self.op("Min", self.op("Max", x, self.floats(low)), self.floats(high))

    def affine(self, x: str, weights: npt.ArrayLike, bias: npt.ArrayLike) -> str:
        """x @ weights + bias."""
        return self.add(self.op("MatMul", x, self.floats(weights)), self.floats(bias))

    def take(self, x: str, indices: int | list[int] | npt.NDArray[np.int64], axis: int) -> str:
        """Columns of x; a single index drops the axis."""
        return self.op("Gather", x, self.ints(indices), axis=axis)

    def slice(self, x: str, start: int, end: int, axis: int) -> str:
        """x[start:end] along an axis."""
        return self.op("Slice", x, self.ints([start]), self.ints([end]), self.ints([axis]))

    def concat(self, *parts: str, axis: int) -> str:
        """Join along an axis."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        """Reshape; 0 keeps, -1 infers."""
        return self.op("Reshape", x, self.ints(list(shape)))

    def unsqueeze(self, x: str, axis: int) -> str:
        """Insert an axis."""
        return self.op("Unsqueeze", x, self.ints([axis]))

    def model(
        self, *, inputs: dict[str, tuple[int, ...]], output: tuple[str, str, tuple[int, ...]], notes: dict[str, str]
    ) -> bytes:
        """Return the checked, serialized model; every tensor is float32 with a free first axis.

        Args:
            inputs: name -> shape without the batch axis.
            output: value, public name, shape without the batch axis.
            notes: written into the model's metadata.
        """
        value, name, shape = output
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        graph = helper.make_graph(
            self._nodes,
            "twinmesh",
            [_tensor(key, of) for key, of in inputs.items()],
            [_tensor(name, shape)],
            initializer=self._initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="twinmesh")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, notes)
        onnx.checker.check_model(model, full_check=True)
        serialized: bytes = model.SerializeToString(deterministic=True)
        return serialized

    def _constant(self, values: npt.NDArray[Any]) -> str:
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
        return self._constants[key]


def _tensor(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
