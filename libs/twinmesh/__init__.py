"""Generated from protos/ by tools/protogen.py: package twinmesh. Do not edit."""
