"""Generated from protos/ by tools/protogen.py: package twinmesh.training.v1. Do not edit."""
