"""Ingestion: the way in for observations.

Owns no table. Promises that nothing is refused silently and nothing is acknowledged before it is durable: every row of
a batch is stored, flagged with a reason, kept in quarantine with the remedy, or counted as a repetition; and a
producer's batch takes effect exactly once, however often it is sent.
"""
