"""DTDL v3, with the QuantitativeTypes extension, to twin types and back, telling whatever cannot be carried."""

from twinmesh_client.dtdl.exporting import Exported, export_dtdl
from twinmesh_client.dtdl.findings import Finding, Loss
from twinmesh_client.dtdl.importing import Imported, import_dtdl

__all__ = ["Exported", "Finding", "Imported", "Loss", "export_dtdl", "import_dtdl"]
