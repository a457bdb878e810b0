"""The proof that a deployed graph is the trained one: it must repeat a few known answers."""

from __future__ import annotations

import numpy as np

from twinmesh_core.errors import Internal, InvalidArgument
from twinmesh_inference.domain.models import Endpoint, GoldenCheck
from twinmesh_inference.domain.ports import Executor


def golden_problem(endpoint: Endpoint, golden: GoldenCheck | None) -> str:
    """Return why these rows cannot prove a version, in words; empty when they can."""
    if golden is None or golden.rows < 1:
        return "it has no golden check, so nothing proves that the deployed graph is the trained one"
    for spec in endpoint.inputs:
        if len(golden.inputs.get(spec.name, b"")) != golden.rows * spec.row_bytes:
            return f"its golden check has another size of {spec.name} than its signature says"
    if len(golden.quantiles) != golden.rows * endpoint.output.row_bytes:
        return "its golden check has another size of quantiles than its signature says"
    return ""


async def prove(executor: Executor, endpoint: Endpoint, golden: GoldenCheck, *, timeout_s: float) -> str:
    """Run the golden rows and return how the answers differ from the expected ones, in words; empty when they do not.

    Raises:
        Unavailable, DeadlineExceeded: the model server did not answer, which proves nothing.
    """
    worst = 0.0
    for start in range(0, golden.rows, endpoint.max_batch_size):
        count = min(endpoint.max_batch_size, golden.rows - start)
        inputs = [
            golden.inputs[spec.name][start * spec.row_bytes : (start + count) * spec.row_bytes]
            for spec in endpoint.inputs
        ]
        try:
            answer = await executor.infer(endpoint, count, inputs, timeout_s=timeout_s)
        except (InvalidArgument, Internal):
            return "the model server could not run its golden check"
        row = endpoint.output.row_bytes
        expected = np.frombuffer(golden.quantiles[start * row : (start + count) * row], "<f4")
        found = np.frombuffer(answer, "<f4")
        if found.shape != expected.shape:
            return "its output has another size than its signature says"
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        if not np.isfinite(difference).all():
            return "it gave a value that is not a finite number for its golden check"
        worst = max(worst, float(difference.max(initial=0.0)))
    if worst > golden.tolerance:
        return f"its golden check differs by {worst:.6g} where {golden.tolerance:.6g} is allowed"
    return ""
