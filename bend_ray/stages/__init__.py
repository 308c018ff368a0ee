"""The stages: one file, one stage, one function, one artifact, and the processes that do its work.

Each stage is ``make(graph, runtime)``: it reads the graph's earlier artifacts and commits its own.
Work is cut into pieces that are pure functions of the config and an index, so that it does not
matter which process does a piece, or how often one is killed.

``autoencoder`` also has the stage of latents. ``seed_trainer`` is what processes of the seeds run,
``representations`` how a stage turns classifiers into vectors and back, ``scoring`` what a search
asks of drawn bags.

To add a stage: a file here with ``make``, a section in ``config.schema``, its artifact in
``config.graph``, its call in ``pipeline``.
"""
