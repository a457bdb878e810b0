"""``python -m twinmesh_inference``: run the inference service with settings from the environment."""

from twinmesh_runtime.collector import collector_off

with collector_off():
    from twinmesh_inference.main import compose
    from twinmesh_inference.settings import InferenceSettings
    from twinmesh_runtime.service import run

if __name__ == "__main__":
    run("inference", InferenceSettings, compose)
