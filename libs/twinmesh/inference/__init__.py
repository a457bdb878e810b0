"""Generated from protos/ by tools/protogen.py: package twinmesh.inference. Do not edit."""
