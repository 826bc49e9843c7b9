"""One person's data: erased everywhere, or collected for the person.

person   who is meant, and what belongs to that person
stores   the table of erasers: one for each place that holds data of persons
erase    the order of an erasure, and its report
"""
