"""The stages: one file, one stage, one function, one artifact, and the processes that do its work.

Each stage is ``make(config, graph)``: it reads the graph's earlier artifacts and commits its own.
Work is cut into pieces that are pure functions of the config and an index, so that it does not
matter which process does a piece, or how often one is killed.

``seed_trainer``, ``sample_drawer`` and ``scoring`` are what processes run; ``representations`` is
how a stage turns classifiers into vectors and back, ``probes`` what stops a generator that
collapses.

To add a stage: a file here with ``make``, a section in ``config.schema``, its artifact in
``config.graph``, its call in ``pipeline``.
"""
