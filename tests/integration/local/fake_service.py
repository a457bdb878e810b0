"""A service as far as the local mesh is concerned: listens, says that it is ready, ends at SIGTERM.

``python fake_service.py TOKEN``. In the environment, FAKE_FAIL=TOKEN ends that one at once, FAKE_DEAF=TOKEN makes it
ignore SIGTERM, FAKE_CHILD=TOKEN makes it start a process that would outlive it.
"""

import asyncio
import os
import signal
import sys

import grpc

TOKEN = sys.argv[1]


def check(request: bytes, context: object) -> bytes:
    return b"\x08\x01"


async def main() -> None:
    print(f"{TOKEN} starts", flush=True)
    if os.environ.get("FAKE_FAIL") == TOKEN:
        sys.exit(f"{TOKEN} cannot work like this")
    if os.environ.get("FAKE_CHILD") == TOKEN:
        await asyncio.create_subprocess_exec("/bin/sleep", "1234567", start_new_session=True)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(check)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})])
    prefix = f"TWINMESH_{TOKEN.upper()}_"
    server.add_insecure_port(f"{os.environ[prefix + 'HOST']}:{os.environ[prefix + 'PORT']}")
    await server.start()
    stop = asyncio.Event()
    deaf = os.environ.get("FAKE_DEAF") == TOKEN
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, (lambda: None) if deaf else stop.set)
    await stop.wait()
    await server.stop(0.2)
    print(f"{TOKEN} ends", flush=True)


asyncio.run(main())
