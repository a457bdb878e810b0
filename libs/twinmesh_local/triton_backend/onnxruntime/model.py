"""The Triton backend named `onnxruntime` of CPU machines: Python that runs `model.onnx` through ONNX Runtime.

On GPU images the C++ backend of the same name serves the same model repository unchanged; this file takes its place
where only Triton's Python backend exists. It is generic: names, types and shapes come from the model's config. Requests
that Triton hands over together run as one batch, and one that fails alone fails alone.

Runs inside Triton's Python stub, not in any process of ours, and imports nothing of Twinmesh.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # the stub brings it


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load ``<model>/<version>/model.onnx``; raises what makes Triton report the version as unavailable."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] == "GPU":
            raise pb_utils.TritonModelException("this onnxruntime backend runs on CPU only; use a GPU image of Triton")
        self.batched: bool = config["max_batch_size"] > 0
        self.inputs: list[str] = [i["name"] for i in config["input"]]
        self.outputs: list[str] = [o["name"] for o in config["output"]]
        self.dtypes: dict[str, Any] = {
            o["name"]: pb_utils.triton_string_to_numpy(o["data_type"]) for o in config["output"]
        }
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(
            os.fspath(path), _session_options(config), providers=["CPUExecutionProvider"]
        )
        _check_names("input", self.inputs, [i.name for i in self.session.get_inputs()], exact=True)
        _check_names("output", self.outputs, [o.name for o in self.session.get_outputs()], exact=False)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, in order; each answer holds that request's rows or that request's error."""
        answers: list[Any] = [None] * len(requests)
        feeds = [self._feed(request) for request in requests]
        for members in self._groups(feeds):
            try:
                self._run_together(members, feeds, requests, answers)
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to these requests, not to the server
                if len(members) == 1:
                    answers[members[0]] = _failure(error)
                    continue
                for member in members:
                    try:
                        self._run_together([member], feeds, requests, answers)
                    except Exception as own:  # noqa: BLE001 - as above
                        answers[member] = _failure(own)
        return answers

    def _feed(self, request: Any) -> dict[str, np.ndarray[Any, Any]]:
        return {name: _array(pb_utils.get_input_tensor_by_name(request, name)) for name in self.inputs}

    def _groups(self, feeds: list[dict[str, np.ndarray[Any, Any]]]) -> list[list[int]]:
        """Indices of requests that can run as one batch: equal in everything but the number of rows."""
        if not self.batched:
            return [[n] for n in range(len(feeds))]
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for n, feed in enumerate(feeds):
            groups.setdefault(tuple(a.shape[1:] for a in feed.values()), []).append(n)
        return list(groups.values())

    def _run_together(
        self,
        members: list[int],
        feeds: list[dict[str, np.ndarray[Any, Any]]],
        requests: list[Any],
        answers: list[Any],
    ) -> None:
        if len(members) == 1:
            feed = feeds[members[0]]
        else:
            feed = {name: np.concatenate([feeds[n][name] for n in members]) for name in self.inputs}
        results = dict(zip(self.outputs, self.session.run(self.outputs, feed), strict=True))
        rows = [next(iter(feeds[n].values())).shape[0] for n in members] if self.batched else [0]
        for name, result in results.items():
            if self.batched and (result.ndim == 0 or result.shape[0] != sum(rows)):
                raise ValueError(f"output {name} has shape {list(result.shape)}, wanted {sum(rows)} rows")
        start = 0
        for n, count in zip(members, rows, strict=True):
            part = slice(start, start + count) if self.batched else slice(None)
            start += count
            wanted = requests[n].requested_output_names()
            answers[n] = pb_utils.InferenceResponse(
                output_tensors=[
                    _tensor(name, np.ascontiguousarray(results[name][part], dtype=self.dtypes[name]))
                    for name in self.outputs
                    if name in wanted
                ]
            )


def _session_options(config: dict[str, Any]) -> Any:
    """Threads by the parameters that the C++ backend knows too; one by default, since instances run side by side."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "1"))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "1"))
    # A spinning thread takes a core from the services on a small machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _check_names(kind: str, configured: list[str], found: list[str], *, exact: bool) -> None:
    """Fail at load, not at the first request, when the config speaks of tensors that the graph does not have."""
    wrong = sorted(set(configured) ^ set(found) if exact else set(configured) - set(found))
    if wrong:
        raise pb_utils.TritonModelException(
            f"{kind} {', '.join(wrong)}: config names {', '.join(configured)}, model.onnx has {', '.join(found)}"
        )


# Tensors cross by DLPack in both directions: the stub was built against numpy 1 and takes the item size of numpy 2
# for zero, so its own conversions yield inputs whose elements are all the first one, and empty answers.


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    """The stub's tensor as an array, without a copy."""
    return np.from_dlpack(tensor)


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    """The contiguous array as the stub's tensor."""
    return pb_utils.Tensor.from_dlpack(name, array)


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"model.onnx could not run these inputs: {error}"))
