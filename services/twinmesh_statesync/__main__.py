"""``python -m twinmesh_statesync``: the service in a process of its own."""

from twinmesh_runtime.collector import collector_off

with collector_off():
    from twinmesh_runtime.service import run
    from twinmesh_statesync.main import compose
    from twinmesh_statesync.settings import StatesyncSettings

if __name__ == "__main__":
    run("statesync", StatesyncSettings, compose)
