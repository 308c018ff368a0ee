"""The model of weight space: it knows vectors, never classifiers.

``autoencoders``, ``denoisers``, ``diffusion``, ``samplers`` and ``rivals`` are axes: specs that
build what they describe, closed by a union at the bottom of each file. ``mlp`` and ``conv1d``
hold the networks the specs build, ``objectives`` the losses they are trained with, and
``latent_diffusion`` what comes out: noise in, latents out.

May import torch; knows neither Ray nor the other rooms.
"""
