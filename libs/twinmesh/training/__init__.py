"""Generated from protos/ by tools/protogen.py: package twinmesh.training. Do not edit."""
