"""A classifier as one vector.

Here live the flattening of a module (``layout``), the standardised parameters and the lossless
principal coefficients that generators learn (``features``), and the alignment of hidden units
between independently trained networks (``symmetry``).

May import torch, numpy, scipy, ``bend_ray.spec`` and ``bend_ray.errors``; never another room and
never Ray. Everything takes and returns tensors: ``theta_KP`` is K models of P parameters.

To add a codec of vectors: one file with pure functions over ``theta_KP`` that also work on a range
of columns, and a test that goes there and back.
"""
