"""``python -m twinmesh_local setup``: fetch what pip cannot install beside us, i.e. Triton. Idempotent.

Where Triton cannot run (another platform) this says so and succeeds: everything but predictions works without it.
"""

from __future__ import annotations

import sys

from twinmesh_local import triton_install
from twinmesh_local.errors import LocalMeshError


def main(arguments: list[str]) -> int:
    """Run the command; the exit status is 0 on success, 1 on failure, 2 on a wrong command."""
    if arguments != ["setup"]:
        _say("usage: python -m twinmesh_local setup")
        return 2
    reason = triton_install.unsupported_reason()
    if reason is not None:
        _say(f"Triton: not available here: {reason}; `docker compose up` runs the whole mesh")
        return 0
    if triton_install.is_installed():
        _say(f"Triton: present ({triton_install.installation()})")
        return 0
    try:
        triton_install.ensure_installed(_say)
    except LocalMeshError as error:
        _say(str(error))
        return 1
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
