"""Protobuf in, protobuf out: the servicer of ingestion and the mapping to its domain."""
