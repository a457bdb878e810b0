"""``twinmesh COMMAND``: reads the command line, runs one command, and says plainly what went wrong."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from twinmesh_cli.errors import FAILED, INTERRUPTED, USAGE, CommandFailedError, UsageError, tell, tell_mesh_error
from twinmesh_cli.options import build_parser, spelled_out
from twinmesh_cli.output import Output
from twinmesh_core.errors import TwinmeshError

DEBUG_VARIABLE = "TWINMESH_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 when done, 1 when it failed, 2 for wrong usage, 130 when interrupted."""
    given = spelled_out(list(sys.argv[1:] if arguments is None else arguments))
    as_json = "--json" in given
    try:
        options = build_parser().parse_args(given)
        status: int = options.run(options, Output(as_json=options.json))
        sys.stdout.flush()
        return status
    except SystemExit as exit_:
        # argparse leaves this way: 0 after --help, 2 after it has said what is wrong.
        return exit_.code if isinstance(exit_.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _abandon_output()
    except BaseException as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _explain(error, as_json=as_json)


def _explain(error: BaseException, *, as_json: bool) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TwinmeshError):
        tell_mesh_error(error, as_json=as_json)
        return FAILED
    if isinstance(error, UsageError):
        tell(error.message, remedy=error.remedy, as_json=as_json)
        return USAGE
    if isinstance(error, CommandFailedError) or type(error).__module__ == "twinmesh_local.errors":
        tell(getattr(error, "message", str(error)), remedy=getattr(error, "remedy", ""), as_json=as_json)
        return FAILED
    if isinstance(error, OSError) and error.filename is not None:
        tell(f"{error.filename}: {(error.strerror or 'cannot be used').lower()}", as_json=as_json)
        return FAILED
    tell(
        f"this command failed by a defect of its own ({type(error).__name__})",
        remedy=f"run it again with {DEBUG_VARIABLE}=1 and report what it prints",
        as_json=as_json,
    )
    return FAILED


def _abandon_output() -> int:
    """Somebody closed the pipe we write to, such as `head`: nothing is wrong, and nobody listens any more."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
