"""History as hypertables of TimescaleDB."""
