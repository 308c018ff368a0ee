"""Where work runs: Ray, and nothing else.

``environment`` is set before Ray is imported, ``cluster`` connects and asks for room, ``capacity``
knows what there is and what could be, ``pool`` shares out pieces of work, ``training`` is the only
distributed training loop, ``sharing`` keeps a data set in the object store, ``jobs`` submits a run
to a cluster, ``tracking`` tells a service of curves.
"""
