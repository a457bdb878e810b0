"""``python -m twinmesh_training``: the training service."""

from twinmesh_runtime.collector import collector_off

with collector_off():
    from twinmesh_runtime.service import run
    from twinmesh_training.main import compose
    from twinmesh_training.settings import TrainingSettings

if __name__ == "__main__":
    run("training", TrainingSettings, compose)
