"""Triton over its own gRPC protocol: raw stubs and raw tensor bytes, no client library between.

Triton is asked for the version of a model by number, always: its own idea of "newest" never decides who answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from twinmesh_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)
from twinmesh_inference.domain.catalogue import triton_away
from twinmesh_inference.domain.deployments import Report
from twinmesh_inference.domain.models import Endpoint

_CONTROL_TIMEOUT_S: Final = 2.0
_MAX_TEMPLATES: Final = 1_024
_NOT_LOADED: Final = ("unknown model", "no available versions", "is not ready", "not at ready state", "is not found")
"""How Triton says that a model is not there, all under codes that also mean other things."""


def open_triton_channel(target: str, *, max_message_bytes: int) -> grpc.aio.Channel:
    """Open a channel to Triton; it connects in the background and must be closed by its owner.

    It differs from a channel between our services: Triton watches no health name of ours, and closes connections that
    ping more often than every five minutes.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ],
    )


class Triton:
    """One Triton server: an executor of graphs and a server of models.

    Args:
        channel: see `open_triton_channel`.
        load_timeout_s: longest load; the first one of a backend also starts it.
        report: the log; it gets Triton's own words, which callers never do.
    """

    def __init__(self, channel: grpc.aio.Channel, *, load_timeout_s: float, report: Report) -> None:
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._load_timeout_s = load_timeout_s
        self._report = report
        self._templates: dict[Endpoint, Any] = {}

    async def infer(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes], *, timeout_s: float) -> bytes:
        """Return the output's bytes; see `Executor`."""
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(self._template(endpoint))
        for tensor in request.inputs:
            tensor.shape[0] = rows
        request.raw_input_contents.extend(inputs)
        try:
            response = await self._stub.ModelInfer(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._refusal(endpoint, error) from None
        contents: bytes = response.raw_output_contents[0] if response.raw_output_contents else b""
        return contents

    async def loaded(self) -> frozenset[tuple[str, int]]:
        """Return the (name, version) pairs that are ready; see `ModelServer`."""
        request = service_pb2.RepositoryIndexRequest(ready=True)
        index = await self._control(self._stub.RepositoryIndex, request, timeout_s=_CONTROL_TIMEOUT_S)
        return frozenset((one.name, int(one.version)) for one in index.models if one.version.isdigit())

    async def load(self, name: str) -> None:
        """Load what the repository holds under `name`; see `ModelServer`."""
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=self._load_timeout_s)
        except grpc.aio.AioRpcError as error:
            self._report("triton_load_refused", level="warning", model=name, words=error.details() or "")
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _late() from None
            # A refused load and a lost connection share their codes: who still answers has refused.
            await self._control(self._stub.ServerLive, service_pb2.ServerLiveRequest(), timeout_s=_CONTROL_TIMEOUT_S)
            raise FailedPrecondition(
                "the model server refused to load it: the file is not a graph that it can run, or has not the tensors "
                "of its signature (the log of the inference service has the server's own words)",
                reason=Reason.MODEL_NOT_READY,
            ) from None

    async def unload(self, name: str) -> None:
        """Unload all versions of a name; see `ModelServer`."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        try:
            await self._stub.RepositoryModelUnload(request, timeout=self._load_timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise triton_away() from None
            # It was not loaded: that is what was asked for.
            self._report("triton_unload_refused", level="debug", model=name, words=error.details() or "")

    async def is_ready(self, name: str, version: int) -> bool:
        """Say whether this version answers calls; see `ModelServer`."""
        request = service_pb2.ModelReadyRequest(name=name, version=str(version))
        try:
            answer = await self._stub.ModelReady(request, timeout=_CONTROL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise triton_away() from None
            return False
        return bool(answer.ready)

    async def _control(self, method: Any, request: Any, *, timeout_s: float) -> Any:
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError:
            raise triton_away() from None

    def _template(self, endpoint: Endpoint) -> Any:
        found = self._templates.get(endpoint)
        if found is None:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            found = self._templates[endpoint] = service_pb2.ModelInferRequest(
                model_name=endpoint.name,
                model_version=str(endpoint.version),
                inputs=[
                    service_pb2.ModelInferRequest.InferInputTensor(name=one.name, datatype="FP32", shape=[1, *one.dims])
                    for one in endpoint.inputs
                ],
                outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=endpoint.output.name)],
            )
        return found

    def _refusal(self, endpoint: Endpoint, error: grpc.aio.AioRpcError) -> TwinmeshError:
        words = error.details() or ""
        match error.code():
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return _late()
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return ResourceExhausted(
                    "The model server has more work than it can queue; come back later.",
                    reason=Reason.OVERLOADED,
                    retry_after_s=0.5,
                )
        if any(mark in words.lower() for mark in _NOT_LOADED):
            return Unavailable(
                "The model is being loaded; call again in a moment.",
                reason=Reason.MODEL_NOT_READY,
                metadata={"triton_model": endpoint.name, "version": str(endpoint.version)},
                retry_after_s=1.0,
            )
        if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
            return triton_away()
        self._report("triton_infer_refused", level="warning", model=endpoint.name, words=words[:500])
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument("The model server refused the tensors of this call.")
        return Internal(
            "The model could not be run on these inputs; ask for another version, or train the model again.",
            metadata={"triton_model": endpoint.name, "version": str(endpoint.version)},
        )


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The model server did not answer within the time allowed for the call.", metadata={"waiting_for": "triton"}
    )
