"""Generated from protos/ by tools/protogen.py: package twinmesh.storage. Do not edit."""
