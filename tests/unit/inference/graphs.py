"""Small ONNX graphs of the signature that inference serves, with what they must answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from twinmesh_inference.domain.models import GoldenCheck, ModelTask, ModelVersion, Signature

STEP_US = 300 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A version and its file."""

    version: ModelVersion
    onnx: bytes

    def run(self, **inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the graph directly, without Triton."""
        session = onnxruntime.InferenceSession(self.onnx, providers=["CPUExecutionProvider"])
        result: npt.NDArray[np.float32] = session.run(["quantiles"], inputs)[0]
        return result


def forecast_signature(*, context: int = 8, horizon: int = 6) -> Signature:
    return Signature(
        channels=("oil_temp", "load"),
        units=("Cel", "1"),
        target="oil_temp",
        step_us=STEP_US,
        context_steps=context,
        horizon_steps=horizon,
        quantile_levels=(0.1, 0.5, 0.9),
    )


def dynamics_signature(*, context: int = 8, horizon: int = 8) -> Signature:
    return Signature(
        channels=("oil_temp", "load", "stage"),
        units=("Cel", "1", "1"),
        target="oil_temp",
        controls=("stage",),
        step_us=STEP_US,
        context_steps=context,
        horizon_steps=horizon,
        quantile_levels=(0.1, 0.5, 0.9),
        control_min=(0.0,),
        control_max=(3.0,),
    )


def build(
    model_id: str,
    version: int,
    *,
    signature: Signature | None = None,
    seed: int = 0,
    twin_ids: tuple[str, ...] = ("T1",),
    weights: dict[str, npt.NDArray[np.float32]] | None = None,
    onnx_bytes: bytes | None = None,
    golden_shift: float = 0.0,
) -> Built:
    """Build a linear model; gaps of the window are filled with zero inside the graph.

    Args:
        weights: by input, plus "bias"; random ones of `seed` where absent.
        onnx_bytes: another file instead of the graph.
        golden_shift: added to the expected golden output, to make its check fail.
    """
    signature = signature or forecast_signature()
    task = ModelTask.DYNAMICS if signature.controls else ModelTask.FORECAST
    chosen = _random_weights(signature, seed) | (weights or {})
    graph = _graph(signature, chosen)
    golden = _golden(graph, signature, golden_shift)
    content = graph if onnx_bytes is None else onnx_bytes
    return Built(
        version=ModelVersion(
            model_id=model_id,
            version=version,
            task=task,
            signature=signature,
            twin_ids=twin_ids,
            artifact_sha256=hashlib.sha256(content).hexdigest(),
            artifact_bytes=len(content),
            golden=golden,
        ),
        onnx=content,
    )


def cooling_weights(
    signature: Signature, *, per_stage: float = 1.0, rise: float = 0.5
) -> dict[str, npt.NDArray[np.float32]]:
    """Weights of a plant that warms by `rise` a step and that each stage cools by `per_stage` a step."""
    steps, levels = signature.horizon_steps, len(signature.quantile_levels)
    window = np.zeros((signature.context_steps, len(signature.channels), steps * levels), np.float32)
    window[-1, signature.target_index] = 1.0
    future = np.zeros((steps, 1, steps, levels), np.float32)
    for step in range(steps):
        future[: step + 1, 0, step, :] = -per_stage
    spread = np.linspace(-1.0, 1.0, levels)
    bias = (rise * np.arange(1, steps + 1))[:, None] + spread[None, :]
    return {
        "window": window.reshape(-1, steps * levels),
        "calendar": np.zeros((4, steps * levels), np.float32),
        "future": future.reshape(steps, steps * levels),
        "bias": bias.astype(np.float32).ravel(),
    }


def sample(signature: Signature, rows: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return random inputs with some gaps."""
    random = np.random.default_rng(seed)
    inputs = {one.name: random.normal(size=(rows, *one.dims)).astype(np.float32) for one in signature.inputs()}
    inputs["window"][random.random(inputs["window"].shape) < 0.1] = np.nan
    return inputs


def _random_weights(signature: Signature, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    width = int(np.prod(signature.output().dims))
    found = {
        one.name: random.normal(size=(int(np.prod(one.dims)), width)).astype(np.float32) for one in signature.inputs()
    }
    found["bias"] = random.normal(size=width).astype(np.float32)
    return found


def _graph(signature: Signature, weights: dict[str, npt.NDArray[np.float32]]) -> bytes:
    nodes, terms = [], []
    constants = [numpy_helper.from_array(np.array(0.0, np.float32), "zero")]
    constants.append(numpy_helper.from_array(np.array([0, *signature.output().dims], np.int64), "shape"))
    for one in signature.inputs():
        constants.append(numpy_helper.from_array(weights[one.name], f"w_{one.name}"))
        nodes.append(helper.make_node("IsNaN", [one.name], [f"{one.name}_gap"]))
        nodes.append(helper.make_node("Where", [f"{one.name}_gap", "zero", one.name], [f"{one.name}_full"]))
        nodes.append(helper.make_node("Flatten", [f"{one.name}_full"], [f"{one.name}_flat"], axis=1))
        nodes.append(helper.make_node("MatMul", [f"{one.name}_flat", f"w_{one.name}"], [f"{one.name}_term"]))
        terms.append(f"{one.name}_term")
    constants.append(numpy_helper.from_array(weights["bias"], "bias"))
    nodes.append(helper.make_node("Sum", [*terms, "bias"], ["flat"]))
    nodes.append(helper.make_node("Reshape", ["flat", "shape"], ["quantiles"]))

    def info(name: str, dims: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *dims])

    graph = helper.make_graph(
        nodes,
        "linear",
        [info(one.name, one.dims) for one in signature.inputs()],
        [info("quantiles", signature.output().dims)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _golden(graph: bytes, signature: Signature, shift: float) -> GoldenCheck:
    inputs = sample(signature, 3, seed=7)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    expected = session.run(["quantiles"], inputs)[0] + np.float32(shift)
    return GoldenCheck(
        rows=3,
        inputs={name: values.tobytes() for name, values in inputs.items()},
        quantiles=expected.astype("<f4").tobytes(),
        tolerance=1e-3,
    )
