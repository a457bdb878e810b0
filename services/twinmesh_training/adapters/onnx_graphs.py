"""Writes a predictor as an ONNX graph: imputation, scaling, features, maps, rollout and intervals, all inside.

The graph is written node by node rather than traced: it is the same in every release of torch, needs none of it, and
takes milliseconds. Each part mirrors one function of the domain, named in its docstring.
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from twinmesh_training.adapters.onnx_builder import GraphBuilder
from twinmesh_training.domain.dataset import Batch
from twinmesh_training.domain.features import (
    CLIP,
    DAY_HARMONICS,
    SCALE_FLOOR,
    WEEK_HARMONICS,
    FeatureMap,
    Normalisation,
)
from twinmesh_training.domain.ports import Float32
from twinmesh_training.domain.predictor import Network, Predictor
from twinmesh_training.domain.rollout import LAGS, Rollout
from twinmesh_training.domain.values import Signature


class OnnxExporter:
    """Exports with ONNX, runs with onnxruntime: the same engine that serves on a CPU."""

    def export(self, predictor: Predictor, signature: Signature) -> bytes:
        """See `twinmesh_training.domain.ports.GraphExporter`."""
        g = GraphBuilder()
        known = _impute(g, "window", signature.context_steps, predictor.features.channel_mean)
        features, centre, scale = _features(g, predictor.features, known)
        if predictor.rollout is None:
            base = centre
        else:
            base = _rollout(g, predictor.rollout, features, known)
        point = g.add(base, g.mul(scale, g.affine(features, predictor.linear.weights, predictor.linear.bias)))
        for other in predictor.others:
            read, middle, unit = _features(g, other.features, known)
            change = g.affine(read, other.linear.weights, other.linear.bias)
            point = g.add(point, g.add(middle, g.mul(unit, change)))
        if predictor.others:
            point = g.div(point, g.floats(1 + len(predictor.others)))
        if predictor.network is not None:
            read, unit = features, scale
            if predictor.network_features is not None:
                read, _, unit = _features(g, predictor.network_features, known)
            point = g.add(point, g.mul(unit, _network(g, predictor.network, read)))
        # A graph has all its inputs even where no map reads the calendar.
        point = g.add(point, g.mul(g.slice("calendar", 0, 1, 1), g.floats(0.0)))
        spread = g.mul(g.unsqueeze(scale, 2), g.floats(predictor.offsets[None]))
        quantiles = g.add(g.unsqueeze(point, 2), spread)
        channels, horizon = len(signature.channels), signature.horizon_steps
        inputs: dict[str, tuple[int, ...]] = {"window": (signature.context_steps, channels), "calendar": (4,)}
        if signature.controls:
            inputs["future"] = (horizon, len(signature.controls))
        return g.model(
            inputs=inputs,
            output=(quantiles, "quantiles", (horizon, len(signature.quantile_levels))),
            notes={"target": signature.target, "channels": ",".join(signature.channels)},
        )

    def run(self, graph: bytes, batch: Batch) -> Float32:
        """See `twinmesh_training.domain.ports.GraphExporter`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        feeds = {"window": batch.window, "calendar": batch.calendar, "future": batch.future}
        wanted = {i.name for i in session.get_inputs()}
        (answer,) = session.run(["quantiles"], {name: value for name, value in feeds.items() if name in wanted})
        return np.asarray(answer, np.float32)


def _features(g: GraphBuilder, mapping: FeatureMap, whole: str) -> tuple[str, str, str]:
    """Mirror `FeatureMap.compute` on a window without NaN: features [B, F], target's centre and scale [B, 1]."""
    context = mapping.context
    known = g.slice(whole, -context, 2**31, 1)
    count = len(mapping.channel_mean)
    if mapping.normalisation is Normalisation.WINDOW:
        centre = g.op("ReduceMean", known, axes=[1], keepdims=1)
        away = g.sub(known, centre)
        variance = g.op("ReduceMean", g.mul(away, away), axes=[1], keepdims=1)
        scale = g.op("Sqrt", g.add(variance, g.floats(np.square(SCALE_FLOOR * mapping.channel_scale))))
        z = g.div(away, scale)
    else:
        centre = g.slice(known, context - 1, context, 1)
        z = g.div(g.sub(known, centre), g.floats(mapping.channel_scale))
        # [B, 1, C] whatever the batch: a constant that takes the batch's length from the centre.
        scale = g.add(g.mul(centre, g.floats(0.0)), g.floats(mapping.channel_scale))
    z = g.clip(z, -CLIP, CLIP)
    parts = [g.op("MatMul", g.take(z, mapping.target, 2), g.floats(mapping.target_pool))]
    if mapping.others:
        by_channel = g.op("Transpose", g.take(z, list(mapping.others), 2), perm=[0, 2, 1])
        pooled = g.op("MatMul", by_channel, g.floats(mapping.other_pool))
        parts.append(g.reshape(pooled, (0, len(mapping.others) * mapping.other_pool.shape[1])))
    centre_row = g.reshape(centre, (0, count))
    if mapping.normalisation.has_levels:
        level = g.div(g.sub(centre_row, g.floats(mapping.channel_mean)), g.floats(mapping.channel_scale))
        level = g.clip(level, -CLIP, CLIP)
        parts.append(level)
        if mapping.pairs:
            left, right = np.array(mapping.pairs).T
            parts.append(g.mul(g.take(level, left, 1), g.take(level, right, 1)))
    if mapping.calendar:
        parts.append(_calendar_basis(g))
    target = [mapping.target]
    return (
        g.concat(*parts, axis=1),
        g.take(centre_row, target, 1),
        g.take(g.reshape(scale, (0, count)), target, 1),
    )


def _impute(g: GraphBuilder, window: str, context: int, fallback: np.ndarray) -> str:
    """Mirror `impute`."""
    missing = g.op("IsNaN", window)
    zero, one = g.floats(0.0), g.floats(1.0)
    present = g.op("Where", missing, zero, one)
    count = g.op("ReduceSum", present, g.ints([1]), keepdims=1)
    total = g.op("ReduceSum", g.op("Where", missing, zero, window), g.ints([1]), keepdims=1)
    mean = g.div(total, g.op("Max", count, one))
    stand_in = g.op("Where", g.op("Greater", count, zero), mean, g.floats(fallback))
    held, distance = window, 1
    while distance < context:
        gap = g.mul(g.slice(held, 0, distance, 1), g.floats(np.nan))
        shifted = g.concat(gap, g.slice(held, 0, context - distance, 1), axis=1)
        held = g.op("Where", g.op("IsNaN", held), shifted, held)
        distance *= 2
    return g.op("Where", g.op("IsNaN", held), stand_in, held)


def _calendar_basis(g: GraphBuilder) -> str:
    """Mirror `calendar_basis`."""
    circle = [g.slice("calendar", k, k + 1, 1) for k in range(4)]
    day = _harmonics(g, circle[0], circle[1], DAY_HARMONICS)
    week = _harmonics(g, circle[2], circle[3], WEEK_HARMONICS)
    joined_day, joined_week = g.concat(*day, axis=1), g.concat(*week, axis=1)
    crossed = g.mul(g.unsqueeze(g.concat(*day[:4], axis=1), 2), g.unsqueeze(joined_week, 1))
    return g.concat(joined_day, joined_week, g.reshape(crossed, (0, 4 * len(week))), axis=1)


def _harmonics(g: GraphBuilder, sine: str, cosine: str, count: int) -> list[str]:
    columns = [sine, cosine]
    for _ in range(count - 1):
        previous_sine, previous_cosine = columns[-2], columns[-1]
        columns.append(g.add(g.mul(previous_sine, cosine), g.mul(previous_cosine, sine)))
        columns.append(g.sub(g.mul(previous_cosine, cosine), g.mul(previous_sine, sine)))
    return columns


def _network(g: GraphBuilder, network: Network, features: str) -> str:
    """Mirror `Network.apply`, with the standardisation folded into the first layer."""
    x = g.div(g.sub(features, g.floats(network.mean)), g.floats(network.scale))
    for index, (weights, bias) in enumerate(network.layers):
        x = g.affine(x, weights, bias)
        if index < len(network.layers) - 1:
            x = g.mul(x, g.op("Sigmoid", x))
    return x


def _rollout(g: GraphBuilder, rollout: Rollout, features: str, known: str) -> str:
    """Mirror `Rollout.trajectory`: one block of nodes per step of the horizon; [B, H]."""
    state = g.div(g.sub(g.slice(known, -LAGS, 2**31, 1), g.floats(rollout.mean)), g.floats(rollout.scale))
    newest_first = [g.take(state, LAGS - 1 - k, 1) for k in range(LAGS)]
    lags = [g.take(lag, list(rollout.driven), 1) for lag in newest_first]
    control = list(rollout.controls)
    control_now = g.take(newest_first[0], control, 1)
    planned = g.div(g.sub("future", g.floats(rollout.mean[control])), g.floats(rollout.scale[control]))
    planned = g.op("Where", g.op("IsNaN", planned), g.unsqueeze(control_now, 1), planned)
    coming, exogenous_now = "", ""
    if rollout.outlook is not None:
        exogenous_now = g.take(newest_first[0], list(rollout.exogenous), 1)
        change = g.affine(features, rollout.outlook.weights, rollout.outlook.bias)
        shape = (0, rollout.horizon, len(rollout.exogenous))
        coming = g.add(g.reshape(change, shape), g.unsqueeze(exogenous_now, 1))
    sine, cosine = g.slice("calendar", 0, 1, 1), g.slice("calendar", 1, 2, 1)
    left, right = np.array(rollout.pairs, np.int64).reshape(-1, 2).T
    target = []
    exogenous_before, control_before = exogenous_now, control_now
    for k in range(rollout.horizon):
        control_k = g.take(planned, k, 1)
        exogenous = [g.take(coming, k, 1)] if coming else []
        base = g.concat(lags[0], *exogenous, control_k, g.mul(control_k, control_k), axis=1)
        turn_sine, turn_cosine = g.floats(np.sin(k * rollout.turn)), g.floats(np.cos(k * rollout.turn))
        phi = g.concat(
            base,
            *(g.sub(lags[i], lags[i + 1]) for i in range(LAGS - 1)),
            *([g.sub(exogenous[0], exogenous_before)] if exogenous else []),
            g.sub(control_k, control_before),
            g.mul(g.take(base, left, 1), g.take(base, right, 1)),
            g.add(g.mul(sine, turn_cosine), g.mul(cosine, turn_sine)),
            g.sub(g.mul(cosine, turn_cosine), g.mul(sine, turn_sine)),
            axis=1,
        )
        moved = g.add(lags[0], g.affine(phi, rollout.step.weights, rollout.step.bias))
        moved = g.clip(moved, rollout.low, rollout.high)
        lags = [moved, *lags[:-1]]
        target.append(g.slice(moved, 0, 1, 1))
        exogenous_before, control_before = (exogenous[0] if exogenous else ""), control_k
    index = rollout.driven[0]
    together = g.concat(*target, axis=1)
    return g.add(g.mul(together, g.floats(rollout.scale[index])), g.floats(rollout.mean[index]))
