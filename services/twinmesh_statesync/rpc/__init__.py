"""The servicers of state-sync: they validate, append or read, and answer; they know no adapter."""
