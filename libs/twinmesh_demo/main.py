"""``twinmesh demo``: bring a mesh up, tell the story, write the report, leave nothing behind."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from pathlib import Path

from twinmesh_cli.demo_options import add_options
from twinmesh_client.aio.mesh import connect_async
from twinmesh_core.errors import TwinmeshError
from twinmesh_demo import csv_story, pages
from twinmesh_demo.progress import Story
from twinmesh_demo.story import tell
from twinmesh_local.accounts import remove_home
from twinmesh_local.datadir import holder_of, home
from twinmesh_local.errors import DataDirInUseError, LocalMeshError
from twinmesh_local.mesh import LocalMesh
from twinmesh_local.triton_install import is_installed


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m twinmesh_demo", description="The whole loop on this machine.")
    add_options(parser)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the demo with parsed options; the exit status."""
    story = Story()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(_run(options, story))
    except (TwinmeshError, LocalMeshError) as error:
        story.say("failed", str(error), style="bold red")
        return 1
    except BaseExceptionGroup as group:
        known, other = group.split((TwinmeshError, LocalMeshError))
        if known is None or other is not None:
            raise
        for failure in known.exceptions:
            story.say("failed", str(failure), style="bold red")
        return 1
    except KeyboardInterrupt:
        story.say("stopped", "every process and port is gone", style="bold yellow")
        return 130


async def _run(options: argparse.Namespace, story: Story) -> int:
    began = time.monotonic()
    recording = csv_story.read_recording(options.csv, options.tz, options.target_column) if options.csv else None
    data_dir = options.data_dir or home() / "demo"
    out: Path = options.out
    if not is_installed():
        story.say("setup", "fetching Triton once, into the user's cache")
    empty(data_dir)
    mesh = LocalMesh(data_dir=data_dir)
    async with mesh:
        story.say(
            "mesh",
            f"PostgreSQL, Valkey, Triton (CPU), 5 services ready in {time.monotonic() - began:.1f} s   "
            f":{mesh.ports.base}-{mesh.ports.base + 4}   data: {data_dir}",
        )
        target = mesh.endpoints["ingestion"]
        async with connect_async(target) as client:
            if recording is not None:
                await csv_story.tell(client, recording, story=story, out=out)
            else:
                facts = await tell(client, target=target, kill=mesh.kill, work_dir=data_dir, story=story)
                await pages.write_report(client, facts, story, out, data_dir)
    story.say("done", f"{_minutes(time.monotonic() - began)}; every process, port and shared-memory segment gone")
    return 0


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


def empty(data_dir: Path) -> None:
    """Remove what an earlier demo left there: a demo starts from nothing, so that its accounts can be exact.

    Raises:
        LocalMeshError: a mesh runs on it, or it holds something that no mesh has put there.
    """
    if not data_dir.exists() or not any(data_dir.iterdir()):
        return
    holder = holder_of(data_dir)
    if holder is not None:
        raise DataDirInUseError(
            f"{data_dir} is in use by another mesh (process {holder})",
            remedy="stop that one (Ctrl-C in its terminal), or choose another directory with --data-dir",
        )
    if not (data_dir / "lock").exists():
        raise LocalMeshError(
            f"{data_dir} holds files, and none of a mesh", remedy="choose an empty directory with --data-dir"
        )
    remove_home(data_dir / "postgresql")
    shutil.rmtree(data_dir)


if __name__ == "__main__":
    sys.exit(main())
