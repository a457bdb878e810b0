"""Inference's wire: the servicer, and the mapping between messages and values."""
