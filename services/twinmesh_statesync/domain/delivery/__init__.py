"""Delivery: what happens to twins, sent to those who subscribed, at least once, in order for each alarm.

The fold keeps a journal of notices, which is part of its checkpoint. A subscription has a cursor into the log; the
notices after it become rows of an outbox, in the transaction that moves the cursor. A row leaves the outbox when its
receiver has taken it. So nothing is lost with the process, and what is sent twice carries the same id both times.
"""
