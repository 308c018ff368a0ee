"""Tune: a search over the pipeline's knobs with Ray Tune, and the trade it finds.

A trial is a config like any other: what two trials have in common, down to a stage, they find in
the store by its fingerprint. ``space`` says what is searched and for what, ``search`` is Ray Tune
over ``trial``, with what ``tuner`` gives it and as many at once as that has room for, and a table
on stderr. What is left is a ``study`` of ``records``, which knows the winner and the bags that are
worth their cost, and holds the winner against the config as it was given, on fresh splits;
``page`` shows it.

May import everything below the command line. Only ``search``, ``tuner`` and ``trial``
need Ray.
"""
