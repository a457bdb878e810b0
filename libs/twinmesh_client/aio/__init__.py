"""The SDK, async: the source from which `twinmesh_client.sync` is generated."""
