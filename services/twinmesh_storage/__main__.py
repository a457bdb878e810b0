"""``python -m twinmesh_storage``."""

from __future__ import annotations

from twinmesh_runtime.collector import collector_off

with collector_off():
    from twinmesh_runtime.service import run
    from twinmesh_storage.main import compose
    from twinmesh_storage.settings import StorageSettings

if __name__ == "__main__":
    run("storage", StorageSettings, compose)
