"""Generated from protos/ by tools/protogen.py: package twinmesh.storage.v1. Do not edit."""
