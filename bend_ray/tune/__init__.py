"""Tune: a search over the pipeline's knobs with Ray Tune, and the trade it finds.

A trial is a config like any other: what two trials have in common, down to a stage, they find in
the store by its fingerprint. ``space`` says what is searched and for what, ``front`` what is worth
its cost, ``capacity`` how many trials a cluster has room for; ``trial`` is one trial, ``study`` all of
them, ``records`` what is kept of both, ``live`` the table on stderr, ``fresh`` the winner against
the default on fresh splits. ``page`` and ``panels`` draw it.

May import everything below the command line. Only ``trial``, ``study`` and ``capacity`` know Ray.
"""
