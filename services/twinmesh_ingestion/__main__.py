"""``python -m twinmesh_ingestion``: run the ingestion service with settings from the environment."""

from twinmesh_runtime.collector import collector_off

with collector_off():
    from twinmesh_ingestion.main import compose
    from twinmesh_ingestion.settings import IngestionSettings
    from twinmesh_runtime.service import run

if __name__ == "__main__":
    run("ingestion", IngestionSettings, compose)
