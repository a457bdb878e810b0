"""One module per outside system: the storage service's log, PostgreSQL, and memory for tests of one process."""
