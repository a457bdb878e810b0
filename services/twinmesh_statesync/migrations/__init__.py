"""Numbered SQL, applied in order at start."""
