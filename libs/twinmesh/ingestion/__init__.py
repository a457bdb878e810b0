"""Generated from protos/ by tools/protogen.py: package twinmesh.ingestion. Do not edit."""
