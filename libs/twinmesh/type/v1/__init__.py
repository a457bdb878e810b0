"""Generated from protos/ by tools/protogen.py: package twinmesh.type.v1. Do not edit."""
