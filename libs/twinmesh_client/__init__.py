"""The Twinmesh SDK: typed, asynchronous access to a mesh from one of its endpoints.

`twinmesh_client.transport` is the part that services use too: channels, deadlines and errors.
"""
