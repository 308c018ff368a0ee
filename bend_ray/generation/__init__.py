"""The model of weight space: it knows vectors, never classifiers.

``models``, ``diffusion`` and ``rivals`` are axes: specs that build what they describe, closed by
unions. ``networks`` are what the models build, ``training`` is how they are trained, and
``latent_diffusion`` what comes out: noise in, latents out.

May import torch; knows neither Ray nor the other rooms.
"""
