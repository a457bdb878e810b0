"""As whom PostgreSQL runs, and where it may then read and write.

PostgreSQL refuses to run as root. When the mesh is started by root, it runs as `nobody` (which every system has; no
account is created), and that user must be able to walk to its binaries and to its data. Neither is certain: root's home
is usually 0700. What it cannot reach is placed below a root-owned state directory (`/var/lib/twinmesh`, or
TWINMESH_STATE_DIR): a copy of the binaries, and the data themselves, to which the data directory then holds a link.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from twinmesh_local.errors import LocalMeshError

STATE_DIR_VARIABLE = "TWINMESH_STATE_DIR"
_DEFAULT_STATE_DIR = Path("/var/lib/twinmesh")
_NOBODY = 65534
_ENTER_AS = """
import os, sys
uid, gid, path = sys.argv[1:]
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
os.chdir(path)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user and group to run a server as.

    Attributes:
        uid: user id.
        gid: group id; the server gets no other group.
    """

    uid: int
    gid: int


def server_account(home: Path) -> Account | None:
    """The account for a server that must not be root: None (the present user) unless we are root.

    Args:
        home: directory of the server's data; if it exists and belongs to an ordinary user, that user goes on owning it.
    """
    if os.geteuid() != 0:
        return None
    try:
        owner = home.stat()
    except OSError:
        owner = None
    if owner is not None and owner.st_uid != 0:
        return Account(uid=owner.st_uid, gid=owner.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return Account(uid=_NOBODY, gid=_NOBODY)
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def can_reach(path: Path, account: Account | None) -> bool:
    """Whether the account may enter this directory; tried out, so that access lists and mounts count too."""
    if account is None:
        return os.access(path, os.X_OK)
    # A small interpreter that changes user by itself: subprocess's own way forks us, which upsets gRPC's threads.
    tried = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _ENTER_AS, str(account.uid), str(account.gid), os.fspath(path)],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=10,
        check=False,
    )
    return tried.returncode == 0


def state_dir() -> Path:
    """The root-owned directory for what another account must reach; created with mode 0755."""
    configured = os.environ.get(STATE_DIR_VARIABLE)
    directory = Path(configured) if configured else _DEFAULT_STATE_DIR
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
    except OSError as error:
        raise LocalMeshError(
            f"{directory} cannot be created ({error.strerror}); PostgreSQL needs a place that it can reach as 'nobody'",
            remedy=f"name another one: export {STATE_DIR_VARIABLE}=/some/dir, or start the mesh as an ordinary user",
        ) from error
    return directory


def reachable_copy(tree: Path, siblings: tuple[Path, ...], *, key: str, account: Account | None) -> Path:
    """`tree` itself if the account can enter it, else a root-owned copy of it (and its siblings) that it can.

    Args:
        tree: directory to make reachable.
        siblings: directories beside `tree` that it finds by relative paths.
        key: names the contents, e.g. name and version; a copy made before under this key is used again.
        account: who needs it.
    """
    if can_reach(tree, account):
        return tree
    target = state_dir() / key
    if not target.is_dir():
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        for source in (tree, *siblings):
            shutil.copytree(source, partial / source.name, symlinks=True)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            # Another mesh finished the same copy first; its copy is as good.
            shutil.rmtree(partial)
    return target / tree.name


def place_home(link: Path, account: Account | None) -> Path:
    """The real directory of a server's data, created for the account if need be.

    Args:
        link: where the user expects it, below the data directory; becomes a link when the account cannot go there.
        account: who owns it; None for the present user.
    """
    if link.is_symlink() and not link.exists():
        raise LocalMeshError(
            f"the data that {link} points to are gone",
            remedy=f"bring {link.readlink()} back, or remove the link to begin with an empty database",
        )
    if link.exists():
        return link.resolve()
    if account is None or can_reach(link.parent, account):
        return _make_home(link, account)
    _remove_abandoned(link)
    home = state_dir() / f"{link.name}-{secrets.token_hex(8)}"
    _owner_note(home).write_text(f"{link}\n")
    _make_home(home, account)
    link.symlink_to(home)
    return home


def abandoned_homes() -> list[Path]:
    """Data below the state directory that no data directory links to any more."""
    configured = os.environ.get(STATE_DIR_VARIABLE)
    directory = Path(configured) if configured else _DEFAULT_STATE_DIR
    found = []
    for note in sorted(directory.glob("*.owner")) if directory.is_dir() else []:
        home = note.with_suffix("")
        if Path(note.read_text().strip()).resolve() != home.resolve():
            found.append(home)
    return found


def remove_home(link: Path) -> None:
    """Delete a server's data, wherever they are, and the link to them. Nothing may be running on them."""
    home = link.resolve()
    if link.is_symlink():
        link.unlink()
    shutil.rmtree(home, ignore_errors=True)
    _owner_note(home).unlink(missing_ok=True)


def _make_home(home: Path, account: Account | None) -> Path:
    home.mkdir(mode=0o700)
    if account is not None:
        os.chown(home, account.uid, account.gid)
    return home.resolve()


def _remove_abandoned(link: Path) -> None:
    """Remove the data of a data directory that was deleted and is being made anew: the user meant them to be gone."""
    for home in abandoned_homes():
        note = _owner_note(home)
        if Path(note.read_text().strip()) == link:
            shutil.rmtree(home, ignore_errors=True)
            note.unlink(missing_ok=True)


def _owner_note(home: Path) -> Path:
    return home.with_name(home.name + ".owner")
