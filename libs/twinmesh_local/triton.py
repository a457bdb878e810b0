"""The real `tritonserver` on loopback, CPU only, with our Python-based backend named `onnxruntime`.

One model repository serves a laptop and a GPU cluster alike: ``config.pbtxt`` says ``backend: "onnxruntime"`` and
``<version>/model.onnx`` holds the model. Models are loaded and unloaded explicitly over gRPC; HTTP is off; a broken
model does not make the server unready. Its shared memory carries a prefix of its own and is removed after it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

import grpc

from twinmesh_local import triton_install
from twinmesh_local.errors import LocalMeshError, ServerFailedError
from twinmesh_local.logs import log_tail
from twinmesh_local.ports import LOOPBACK, free_port
from twinmesh_local.processes import Guardian, ProcessSpec

_BACKEND_SOURCE = Path(__file__).with_name("triton_backend") / "onnxruntime"
_PORT_ATTEMPTS = 3
_LIVE = "/inference.GRPCInferenceService/ServerLive"
_LIVE_ANSWER = b"\x08\x01"
"""ServerLiveResponse{live: true}, encoded; asking in raw bytes keeps Triton's client out of the base install."""


class TritonServer:
    """One Triton, child of a guardian.

    Args:
        guardian: starts it and ends it with us.
        directory: directory of the mesh; `triton/models` below it is the model repository unless another is named.
        log_dir: directory for its log.
        model_repository: the model repository; created if absent.
        name: name of its process, unique within the guardian.
        stage: stopping stage, see `ProcessSpec`.
    """

    def __init__(
        self,
        guardian: Guardian,
        directory: Path,
        *,
        log_dir: Path,
        model_repository: Path | None = None,
        name: str = "triton",
        stage: int = 0,
    ) -> None:
        self._guardian = guardian
        self._directory = directory / "triton"
        self._model_repository = model_repository or self._directory / "models"
        self._log = log_dir / f"{name}.log"
        self._name = name
        self._stage = stage
        self._port: int | None = None
        self._metrics_port: int | None = None
        self.pid: int | None = None

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._log

    @property
    def model_repository(self) -> Path:
        """The directory to put models into: ``<name>/config.pbtxt`` and ``<name>/<version>/model.onnx``."""
        return self._model_repository

    @property
    def grpc_url(self) -> str:
        """``host:port`` of its gRPC endpoint, as tritonclient wants it; an error before `start`."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def port(self) -> int:
        """The loopback port of its gRPC endpoint; an error before `start`."""
        if self._port is None:
            raise LocalMeshError("Triton is not running", remedy="start it first")
        return self._port

    @property
    def metrics_url(self) -> str:
        """URL of its Prometheus metrics; an error before `start`."""
        if self._metrics_port is None:
            raise LocalMeshError("Triton is not running", remedy="start it first")
        return f"http://{LOOPBACK}:{self._metrics_port}/metrics"

    def start(self, *, timeout_s: float = 60.0, port: int | None = None) -> None:
        """Start the server with no model loaded; return once it is live. Installs Triton first where it is missing.

        Args:
            timeout_s: longest wait for it to be live.
            port: insist on this gRPC port, as for a restart; None takes a free one.

        Raises:
            LocalMeshError: Triton cannot be installed on this machine.
            ServerFailedError: it ended or was not live in time; the error shows the end of its log.
        """
        installed = triton_install.ensure_installed()
        self._model_repository.mkdir(parents=True, exist_ok=True)
        backends = self._lay_out_backends(installed)
        attempts = _PORT_ATTEMPTS if port is None else 1
        for attempt in range(1, attempts + 1):
            self._port, self._metrics_port = port or free_port(), free_port()
            self.pid = self._guardian.spawn(self._spec(installed, backends))
            if self._wait_until_live(timeout_s=timeout_s):
                return
            if attempt == attempts or "in use" not in log_tail(self._log, lines=20):
                break
        raise ServerFailedError(f"Triton did not start:{log_tail(self._log)}", remedy=f"see {self._log}")

    def stop(self, *, timeout_s: float = 20.0) -> None:
        """Unload every model and stop; the model repository stays."""
        self._guardian.stop(self._name, timeout_s=timeout_s)
        self._port = self._metrics_port = None

    def _lay_out_backends(self, installed: Path) -> Path:
        """A backend directory: Triton's own `python` and our `onnxruntime`; made anew at each start."""
        backends = self._directory / "backends"
        shutil.rmtree(backends, ignore_errors=True)
        python = backends / "python"
        python.mkdir(parents=True)
        server = installed / "pytriton" / "tritonserver"
        for source in (server / "backends" / "python").iterdir():
            # Copied: Triton takes a link to another directory for an escape from this one.
            shutil.copyfile(source, python / source.name)
        stub = server / "python_backend_stubs" / triton_install.python_version() / "triton_python_backend_stub"
        (python / stub.name).symlink_to(stub)
        onnxruntime = backends / "onnxruntime"
        onnxruntime.mkdir()
        shutil.copyfile(_BACKEND_SOURCE / "model.py", onnxruntime / "model.py")
        return backends

    def _spec(self, installed: Path, backends: Path) -> ProcessSpec:
        prefix = f"twinmesh-{os.getpid()}-{secrets.token_hex(4)}"
        shared_memory = {
            "shm-region-prefix-name": prefix,
            "shm-default-byte-size": "1048576",
            "shm-growth-byte-size": "1048576",
            "stub-timeout-seconds": "60",
        }
        arguments = {
            "model-repository": os.fspath(self._model_repository),
            "backend-directory": os.fspath(backends),
            "model-control-mode": "explicit",
            # Else one broken model makes the whole server unready, for good.
            "strict-readiness": "false",
            # Configs are written in full; completing them would start one more stub process at every load.
            "disable-auto-complete-config": "",
            "allow-http": "false",
            "grpc-address": LOOPBACK,
            "grpc-port": str(self._port),
            "metrics-address": LOOPBACK,
            "metrics-port": str(self._metrics_port),
            "allow-gpu-metrics": "false",
            "pinned-memory-pool-byte-size": "0",
            "model-load-thread-count": "2",
            "exit-timeout-secs": "3",
        }
        return ProcessSpec(
            name=self._name,
            argv=[
                os.fspath(triton_install.server_binary()),
                *(f"--{key}={value}" if value else f"--{key}" for key, value in arguments.items()),
                *(f"--backend-config=python,{key}={value}" for key, value in shared_memory.items()),
                *(f"--backend-config=onnxruntime,{key}={value}" for key, value in shared_memory.items()),
            ],
            log=self._log,
            env=_environment(installed),
            cwd=self._directory,
            stage=self._stage,
            # It holds nothing that a kill could lose, and its own shutdown looks only once a second.
            stop=((signal.SIGTERM, 0.5),),
            shm_prefix=prefix,
        )

    def _wait_until_live(self, *, timeout_s: float) -> bool:
        """True once it says that it is live; False when it ended."""
        deadline = time.monotonic() + timeout_s
        # A short back-off: the channel's own would wait a second after the first refusal.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        with grpc.insecure_channel(self.grpc_url, options=options) as channel:
            live: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_LIVE)
            while True:
                if self.pid is not None and self._guardian.exit_of(self.pid) is not None:
                    return False
                try:
                    if live(b"", timeout=1.0) == _LIVE_ANSWER:
                        return True
                except grpc.RpcError:
                    # Not listening yet; whether that is final is decided by its exit or the deadline.
                    time.sleep(0.02)
                if time.monotonic() > deadline:
                    self._guardian.stop(self._name)
                    return False


def _environment(installed: Path) -> dict[str, str]:
    """What tritonserver and its stubs need and nothing of the user's.

    The stub takes its Python home from the first `python3` on PATH and ignores PYTHONPATH: so our environment's comes
    first, whose numpy and onnxruntime it then finds, and our interpreter's library is preferred to the system's.
    """
    libraries = [installed / "nvidia_pytriton.libs"]
    libpython = triton_install.libpython_dir()
    if libpython is not None:
        libraries.insert(0, libpython)
    return {
        "PATH": os.pathsep.join((os.fspath(Path(sys.executable).parent), "/usr/bin", "/bin")),
        "LD_LIBRARY_PATH": os.pathsep.join(map(os.fspath, libraries)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }
