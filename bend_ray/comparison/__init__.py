"""Bags beside bags: what the evaluation says, computed in one process without Ray.

``comparison`` scores a bag and its rivals on the test part, ``evidence`` is all that their report
is drawn from, ``validation`` scores bags for a search, on validation images alone.
"""
