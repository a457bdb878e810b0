"""Generated from protos/ by tools/protogen.py: package twinmesh.mesh.v1. Do not edit."""
