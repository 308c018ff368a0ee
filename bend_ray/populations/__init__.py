"""What a population is once it is stored.

``members`` knows its files, layout, bases and trunks, and its members' whole state dicts,
``networks`` turns its vectors into answers, ``divergence`` keeps account of those that are left
out. Knows no Ray.
"""
