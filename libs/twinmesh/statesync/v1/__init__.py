"""Generated from protos/ by tools/protogen.py: package twinmesh.statesync.v1. Do not edit."""
