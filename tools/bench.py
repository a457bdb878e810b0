"""Run the benchmarks and gather their last lines: one JSON object each, our number beside the machine's floor.

python tools/bench.py                    all of benchmarks/
python tools/bench.py first_forecast     one; the rest of the line is passed on to it
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT_S = 1800


def names() -> list[str]:
    """List the benchmarks: every module of benchmarks/ that can be run; the others are what they share."""
    modules = (ROOT / "benchmarks").glob("*.py")
    return sorted(path.stem for path in modules if "__main__" in path.read_text(encoding="utf-8"))


def run(name: str, arguments: Sequence[str]) -> dict[str, object] | None:
    """Run one benchmark, its output passing through; its result, or None when it failed or printed none."""
    print(f"[bench]    {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"[bench]    {name} did not end within {TIME_LIMIT_S} s", file=sys.stderr)
        return None
    print(done.stdout, end="", flush=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        print(f"[bench]    {name} failed with status {done.returncode}", file=sys.stderr)
        return None
    try:
        result = json.loads(lines[-1])
    except json.JSONDecodeError:
        print(f"[bench]    {name}: the last line is not a JSON object", file=sys.stderr)
        return None
    return result if isinstance(result, dict) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when every benchmark delivered its number."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = names()
    chosen, rest = (
        ([arguments[0]], arguments[1:]) if arguments and not arguments[0].startswith("-") else (known, arguments)
    )
    if unknown := [name for name in chosen if name not in known]:
        print(f"no such benchmark: {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    results = {name: run(name, rest) for name in chosen}
    print(json.dumps({name: result for name, result in results.items() if result is not None}))
    return 0 if all(result is not None for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
