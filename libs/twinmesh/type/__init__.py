"""Generated from protos/ by tools/protogen.py: package twinmesh.type. Do not edit."""
