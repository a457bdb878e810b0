"""The fold and its laws: pure rules over log entries, and the ports they are fed and kept by."""
