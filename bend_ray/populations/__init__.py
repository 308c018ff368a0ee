"""What a population is once it is stored.

``members`` knows its files, layout, bases and trunks, ``networks`` turns its vectors into answers,
``states`` reads whole state dicts of members, ``divergence`` keeps account of those that are left
out. Knows no Ray.
"""
