"""Bags beside bags: what the evaluation says, computed in one process without Ray.

``comparison`` makes the bag and its rivals, on validation examples alone, and scores them on the
test part, ``evidence`` is all that their report is drawn from. All read what members say in blocks.
"""
