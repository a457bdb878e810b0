"""Generated from protos/ by tools/protogen.py: package twinmesh.mesh. Do not edit."""
