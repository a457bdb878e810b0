"""Generated from protos/ by tools/protogen.py: package twinmesh.ingestion.v1. Do not edit."""
