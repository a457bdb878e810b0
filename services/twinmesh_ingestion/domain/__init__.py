"""The rules of ingestion: resolve, check, flag, keep aside, hand to the log in order."""
