"""Storage: owns the one durable, ordered log and the history folded from it.

It promises: an acknowledged entry is committed, exactly once, under a dense offset that never changes; nothing is
visible before it is committed; followers see every entry once and in order; history and windows reflect the log up
to the offset that each answer states. PostgreSQL holds all of it; Redis only makes cold starts cheaper.
"""
