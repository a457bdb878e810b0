"""Run every static check, as many at once as there are cores, and say what each took.

    python tools/check.py            all
    python tools/check.py types lint only these

A check is a command; it passes with exit status 0. Output is shown only for those that fail.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
OURS = ("libs", "services", "tools", "tests", "benchmarks", "examples")
TIME_LIMIT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One command; `name` is what the user types to run it alone."""

    name: str
    command: tuple[str, ...]
    cwd: Path = ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check said; `seconds` is wall time."""

    check: Check
    passed: bool
    seconds: float
    output: str


def checks() -> tuple[Check, ...]:
    """List the checks, the longest first so that the cores stay busy."""
    ours = tuple(name for name in OURS if any((ROOT / name).rglob("*.py")))
    python = str(BIN / "python")
    return (
        Check(name="types", command=(str(BIN / "mypy"), "--no-error-summary", *ours)),
        Check(name="deploy", command=(python, "tools/check_deploy.py")),
        Check(name="drift", command=(python, "tools/protogen.py", "--check")),
        Check(name="sdk", command=(python, "tools/async_to_sync.py", "--check")),
        Check(name="imports", command=(str(BIN / "lint-imports"), "--no-logo", "--cache-dir", ".cache/importlinter")),
        Check(name="protos", command=(str(BIN / "buf"), "lint", "."), cwd=ROOT / "protos"),
        Check(name="lint", command=(str(BIN / "ruff"), "check", ".")),
        Check(name="format", command=(str(BIN / "ruff"), "format", "--check", ".")),
    )


def run(check: Check) -> Outcome:
    """Run one check to its end; a check that exceeds the time limit has failed."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": "", "RUFF_CACHE_DIR": str(ROOT / ".cache" / "ruff")}
    try:
        done = subprocess.run(
            check.command,
            cwd=check.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
        passed, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired:
        passed, output = False, f"did not end within {TIME_LIMIT_S} s\n"
    return Outcome(check=check, passed=passed, seconds=time.monotonic() - started, output=output)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when every check passed."""
    known = {check.name: check for check in checks()}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CHECK", help=f"only these of: {', '.join(known)}")
    names: list[str] = parser.parse_args(argv).names
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such check: {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [check for check in known.values() if not names or check.name in names]
    (ROOT / ".cache").mkdir(exist_ok=True)
    started = time.monotonic()
    failures = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for future in as_completed([pool.submit(run, check) for check in chosen]):
            outcome = future.result()
            failures += not outcome.passed
            print(
                f"[check]    {outcome.check.name:<8} {'ok' if outcome.passed else 'FAILED':<6} {outcome.seconds:5.1f} s"
            )
            if not outcome.passed:
                print(outcome.output.rstrip(), flush=True)
    verdict = f"{failures} of {len(chosen)} failed" if failures else f"all {len(chosen)} passed"
    print(f"[check]    {verdict} in {time.monotonic() - started:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
