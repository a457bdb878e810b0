"""Generated from protos/ by tools/protogen.py: package twinmesh.statesync. Do not edit."""
