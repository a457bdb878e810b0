"""A producer's spool: batches on disk from the moment they are taken until the mesh has them.

A directory of segment files (`records` says what stands in them), one small state file, and a lock. It belongs to one
producer and is open in one process. Batches are numbered from 1 in the order they were taken; how that number becomes
the producer's sequence in the mesh is decided once, at the first contact, and kept in the state file.
"""
