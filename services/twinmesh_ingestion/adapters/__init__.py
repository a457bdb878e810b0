"""The outside systems of ingestion: storage, which holds the log and through it the registry."""
