"""Alarms: rules of twin types judged in the fold, and the life of the alarms that they raise.

All of it is pure. A rule is judged at the offset of the entry that changed one of its inputs; what time must do (a
delay that is over, a silence, a shelving, a maintenance) is decided by the commit time of whatever entry comes next,
and state-sync's clock sees to it that one comes. So it does not matter when, how often or in which order the clock's
own entries arrive.
"""
