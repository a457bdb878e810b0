"""Numbered SQL of the schema ``training``."""
