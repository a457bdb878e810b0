"""Recorded files, CSV and Parquet of any size: read a bounded part at a time, stored exactly once, restartable."""
