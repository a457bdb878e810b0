"""Generated from protos/ by tools/protogen.py: package twinmesh.inference.v1. Do not edit."""
