"""What concerns this machine: `up`, `demo`, `doctor`, `env`."""

from __future__ import annotations

import argparse
import asyncio
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twinmesh_cli.demo_options import add_options as add_demo_options
from twinmesh_cli.errors import FAILED, CommandFailedError
from twinmesh_cli.output import Output
from twinmesh_cli.session import on_mesh

Subparsers = Any  # argparse keeps the class of its subparsers private


def add(commands: Subparsers, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    up = commands.add_parser("up", parents=[common], help="run a mesh on this machine until Ctrl-C")
    up.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where it keeps everything (default: ~/.twinmesh/local)"
    )
    up.add_argument(
        "--ports", type=int, metavar="FIRST", help="first of ten ports (default: 7400 or the next free ones)"
    )
    up.add_argument("--no-triton", action="store_true", help="without Triton: everything but predictions works")
    up.add_argument(
        "--statesync", type=int, default=1, metavar="N", help="processes of state-sync that share its work (default: 1)"
    )
    up.set_defaults(run=_up)
    demo = commands.add_parser("demo", help="the whole loop on this machine, in minutes, with a report")
    add_demo_options(demo)
    demo.set_defaults(run=_demo, json=False)
    doctor = commands.add_parser(
        "doctor", parents=[common], help="what this machine lacks to run a mesh, and the remedy"
    )
    doctor.add_argument("--data-dir", type=Path, metavar="DIR", help="look at this data directory")
    doctor.set_defaults(run=_doctor)
    env = commands.add_parser("env", parents=[common], help="which mesh commands talk to, and variables to export")
    env.set_defaults(run=on_mesh(_env))


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import in this block what an extra installs; a missing module says which extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandFailedError(
            f"this needs the extra {name!r}: the module {error.name} is not installed",
            remedy=f"pip install 'twinmesh[{name}]'",
        ) from None


def _up(arguments: Namespace, out: Output) -> int:
    with extra("local"):
        from twinmesh_local.foreground import run_foreground

    say = out.line
    if arguments.json:

        def say(text: str = "") -> None:
            out.json_line({"message": text})

    return asyncio.run(
        run_foreground(
            out=say,
            data_dir=arguments.data_dir,
            with_triton=not arguments.no_triton,
            statesync=arguments.statesync,
            ports=arguments.ports,
            context=arguments.context or "local",
        )
    )


def _demo(arguments: Namespace, _out: Output) -> int:
    with extra("demo"):
        from twinmesh_demo.main import run

    return run(arguments)


def _doctor(arguments: Namespace, out: Output) -> int:
    from twinmesh_local.doctor import can_run, examine

    findings = examine(arguments.data_dir)
    able = can_run(findings)
    signs = {"ok": "ok", "warning": "!", "failure": "FAIL"}
    out.table(
        ("", "check", "found", "what to do"),
        ((signs.get(str(f.level), str(f.level)), f.check, f.found, f.remedy) for f in findings),
    )
    out.line("A mesh can run here: twinmesh up" if able else "A mesh cannot run here yet; see what to do above.")
    out.document({"can_run": able, "findings": findings})
    return 0 if able else FAILED


async def _env(mesh: Any, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.context import load_context
    from twinmesh_client.targets import CONTEXT_VARIABLE, TARGET_VARIABLE, context_name, resolve_target

    target = resolve_target(arguments.target, arguments.context)
    name = arguments.context or context_name()
    saved = load_context(name)
    if saved is not None and target not in saved.endpoints.values():
        saved = None
    metrics = dict(saved.metrics) if saved else {}
    if arguments.target:
        why = "--target"
    elif arguments.context:
        why = f"context {name}"
    elif os.environ.get(TARGET_VARIABLE):
        why = f"${TARGET_VARIABLE}"
    else:
        why = f"context {name}" + (f" (${CONTEXT_VARIABLE})" if os.environ.get(CONTEXT_VARIABLE) else "")
    exports = {TARGET_VARIABLE: target}
    for text in (
        f"# mesh at {target}, chosen by {why}; version {mesh.version}, {mesh.mode}",
        *([f"# data: {saved.data_dir}   process {saved.pid}"] if saved and saved.pid else []),
        *(f"# {token:<10} {at}" + (f"   metrics http://{metrics[token]}/metrics" if token in metrics else "")
          for token, at in mesh.endpoints.items()),
        *(f"export {key}={value}" for key, value in exports.items()),
    ):  # fmt: skip
        out.line(text)
    out.document(
        {
            "target": target,
            "chosen_by": why,
            "context": saved.name if saved else None,
            "version": mesh.version,
            "mode": mesh.mode,
            "endpoints": mesh.endpoints,
            "metrics": metrics,
            "data_dir": saved.data_dir if saved else None,
            "exports": exports,
        }
    )
    return 0
