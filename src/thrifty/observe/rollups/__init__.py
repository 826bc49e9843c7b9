"""Sums of the request log by minute, hour and day, so that a year's charts are quick.

sketch   the distribution of a time in a few hundred bytes, which can be added to others
roll     adds new rows of the log to the sums, exactly once
series   reads the sums as series over time
"""
