"""Inference's outside world: one module per system."""
