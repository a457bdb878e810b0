"""The local Triton: the life of a model version, exact answers per caller, and nothing left behind."""

import asyncio
import os
import signal
import urllib.request
from pathlib import Path
from uuid import uuid4

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from twinmesh_local.processes import Guardian
from twinmesh_local.triton import TritonServer

CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: 64
input [ {{ name: "window" data_type: TYPE_FP32 dims: [ -1, 2 ] }} ]
output [ {{ name: "quantiles" data_type: TYPE_FP32 dims: [ -1, 2 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 20000 }}
version_policy {{ latest {{ num_versions: 2 }} }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def scaling_model(factor: float) -> bytes:
    """quantiles = window * factor; a window of 7 steps makes Reshape to 6 fail, as a bad request would."""
    rows: list[str | int | None] = ["B", "T", 2]
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["window"], ["shape"], start=1, end=2),
            helper.make_node("Equal", ["shape", "seven"], ["is_seven"]),
            helper.make_node("Cast", ["is_seven"], ["index"], to=TensorProto.INT64),
            helper.make_node("Mul", ["index", "five"], ["too_far"]),
            helper.make_node("Gather", ["factor", "too_far"], ["chosen"]),
            helper.make_node("Mul", ["window", "chosen"], ["quantiles"]),
        ],
        "scale",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, rows)],
        [helper.make_tensor_value_info("quantiles", TensorProto.FLOAT, rows)],
        [
            helper.make_tensor("seven", TensorProto.INT64, [1], [7]),
            helper.make_tensor("five", TensorProto.INT64, [1], [5]),
            helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def put_version(repository: Path, name: str, version: int, content: bytes) -> None:
    """Write beside, rename: Triton never sees half a version."""
    model = repository / name
    partial = model / f"{version}.part"
    partial.mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG.format(name=name))
    (partial / "model.onnx").write_bytes(content)
    partial.rename(model / str(version))


@pytest.fixture
def client(triton_server):
    with triton.InferenceServerClient(triton_server.grpc_url) as client:
        yield client


@pytest.fixture
def model(triton_server, client):
    """A loaded model that doubles its window."""
    name = f"scale-{uuid4().hex[:8]}"
    put_version(triton_server.model_repository, name, 1, scaling_model(2.0))
    client.load_model(name)
    yield name
    client.unload_model(name)


def infer(client, name, window, version=""):
    tensor = triton.InferInput("window", window.shape, "FP32").set_data_from_numpy(window)
    return client.infer(name, [tensor], model_version=version, client_timeout=10).as_numpy("quantiles")


def test_answers_what_the_model_says(client, model):
    window = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    np.testing.assert_array_equal(infer(client, model, window), window * 2)


def test_missing_values_pass_through(client, model):
    window = np.array([[[1.0, np.nan]]], dtype=np.float32)
    np.testing.assert_array_equal(infer(client, model, window), window * 2)


def test_new_version_takes_over_and_the_previous_one_stays(client, model, triton_server):
    window = np.ones((1, 1, 2), dtype=np.float32)
    put_version(triton_server.model_repository, model, 2, scaling_model(3.0))
    client.load_model(model)
    assert infer(client, model, window)[0, 0, 0] == 3
    assert infer(client, model, window, version="1")[0, 0, 0] == 2
    put_version(triton_server.model_repository, model, 3, scaling_model(4.0))
    client.load_model(model)
    assert infer(client, model, window)[0, 0, 0] == 4
    assert infer(client, model, window, version="2")[0, 0, 0] == 3
    assert not client.is_model_ready(model, "1")


def test_a_broken_version_leaves_the_others_and_the_server_ready(client, model, triton_server):
    put_version(triton_server.model_repository, model, 2, b"not a model")
    with pytest.raises(InferenceServerException, match="version 2 is at UNAVAILABLE"):
        client.load_model(model)
    assert client.is_server_ready()
    assert infer(client, model, np.ones((1, 1, 2), dtype=np.float32))[0, 0, 0] == 2


def test_unloaded_is_unloaded(client, triton_server):
    name = f"scale-{uuid4().hex[:8]}"
    put_version(triton_server.model_repository, name, 1, scaling_model(2.0))
    client.load_model(name)
    client.unload_model(name)
    with pytest.raises(InferenceServerException):
        infer(client, name, np.ones((1, 1, 2), dtype=np.float32))


def test_a_config_that_contradicts_the_graph_is_refused_at_load(client, triton_server):
    name = f"scale-{uuid4().hex[:8]}"
    put_version(triton_server.model_repository, name, 1, scaling_model(2.0))
    config = triton_server.model_repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace('"quantiles"', '"mean"'))
    with pytest.raises(InferenceServerException, match="output mean"):
        client.load_model(name)


async def test_batched_callers_get_exactly_their_rows_and_bad_ones_fail_alone(model, triton_server):
    async with triton_aio.InferenceServerClient(triton_server.grpc_url) as client:

        async def ask(n: int) -> object:
            # Odd callers send another shape, every tenth one a window the graph cannot run.
            steps = 7 if n % 10 == 0 else 2 + n % 2
            window = np.full((1 + n % 3, steps, 2), n, dtype=np.float32)
            tensor = triton_aio.InferInput("window", window.shape, "FP32").set_data_from_numpy(window)
            try:
                answer = await client.infer(model, [tensor], client_timeout=20)
            except InferenceServerException as error:
                return error
            np.testing.assert_array_equal(answer.as_numpy("quantiles"), window * 2)
            return None

        outcomes = await asyncio.gather(*(ask(n) for n in range(60)))
    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == list(range(0, 60, 10))
    assert all("could not run these inputs" in str(outcomes[n]) for n in range(0, 60, 10))


def test_every_number_type_crosses_unchanged(client, triton_server):
    kinds: dict[str, np.ndarray] = {
        "TYPE_FP32": np.array([[1.5, -2]], dtype=np.float32),
        "TYPE_FP64": np.array([[1 / 3, 2]], dtype=np.float64),
        "TYPE_INT64": np.array([[-(2**60), 7]], dtype=np.int64),
        "TYPE_INT32": np.array([[-5, 7]], dtype=np.int32),
        "TYPE_BOOL": np.array([[True, False]]),
    }
    name = f"identity-{uuid4().hex[:8]}"
    io = [(k, helper.np_dtype_to_tensor_dtype(v.dtype)) for k, v in kinds.items()]
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{k}"], [f"out_{k}"]) for k, _ in io],
        "identity",
        [helper.make_tensor_value_info(f"in_{k}", t, ["B", 2]) for k, t in io],
        [helper.make_tensor_value_info(f"out_{k}", t, ["B", 2]) for k, t in io],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    put_version(triton_server.model_repository, name, 1, model.SerializeToString())
    fields = "".join(
        f'{kind} {{ name: "{side}_{k}" data_type: {k} dims: [ 2 ] }}\n'
        for kind, side in (("input", "in"), ("output", "out"))
        for k in kinds
    )
    config = triton_server.model_repository / name / "config.pbtxt"
    config.write_text(f'name: "{name}" backend: "onnxruntime" max_batch_size: 4\n{fields}')
    client.load_model(name)
    tensors = [
        triton.InferInput(f"in_{k}", v.shape, k.removeprefix("TYPE_")).set_data_from_numpy(v) for k, v in kinds.items()
    ]
    answer = client.infer(name, tensors, client_timeout=10)
    for k, v in kinds.items():
        np.testing.assert_array_equal(answer.as_numpy(f"out_{k}"), v)
    only = client.infer(name, tensors, outputs=[triton.InferRequestedOutput("out_TYPE_INT64")], client_timeout=10)
    assert [o.name for o in only.get_response().outputs] == ["out_TYPE_INT64"]
    client.unload_model(name)


def test_metrics_are_served_on_loopback(triton_server):
    with urllib.request.urlopen(triton_server.metrics_url, timeout=5) as answer:  # noqa: S310 - our own http URL
        assert b"nv_inference" in answer.read()


def test_killed_it_leaves_no_shared_memory_and_no_stub(tmp_path):
    with Guardian(log=tmp_path / "guardian.log") as guardian:
        server = TritonServer(guardian, tmp_path, log_dir=tmp_path)
        server.start()
        put_version(server.model_repository, "scale", 1, scaling_model(2.0))
        with triton.InferenceServerClient(server.grpc_url) as client:
            client.load_model("scale")
        prefix = f"twinmesh-{os.getpid()}-"
        mine = {p.name for p in Path("/dev/shm").glob(prefix + "*")}  # noqa: S108 - looked at only
        assert mine
        guardian.signal("triton", signal.SIGKILL)
    left = {p.name for p in Path("/dev/shm").glob(prefix + "*")}  # noqa: S108 - as above
    assert not left - mine
    stubs = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(p)]
    assert stubs == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
