"""PostgreSQL: the log, the blocks, the catalogue and quarantine, one module each."""
