"""Many classifiers, one answer.

``bagging`` chooses which members vote, ``votes`` combines their logits into one probability per
class and calibrates it, ``metrics`` scores the answer and the diversity behind it, ``novelty``
tells whether a generated population is new or copied.

May import torch, numpy and the floors below (spec, lazy, errors); never Ray, never another room:
members come in as logits, predictions or parameter vectors, so nothing here knows an
architecture. ``bagging`` and ``votes`` are axes: to add a variant, write one class with a new
``kind`` and the method its neighbours have, and add its name to the union at the bottom of the
file. Whatever chooses, weights or calibrates sees validation data only.
"""
