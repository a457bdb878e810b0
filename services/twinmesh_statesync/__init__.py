"""State-sync: keeps each entity's virtual replica current and lets anyone watch it without a gap.

It owns twin types and twins, and folds the log into replicas: what is reported, desired and predicted, and the delta
between the first two. A mutation is an entry of the log; the fold decides it at the entry's own offset, so that every
process that folds the same log reaches the same verdict and the same replica. It promises dense revisions per twin,
conditional writes of which exactly one racer wins, commands that survive a device's absence, and watches that either
continue exactly where they were left or say that they cannot.
"""
