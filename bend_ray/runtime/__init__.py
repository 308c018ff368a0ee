"""Where work runs: on Ray, or in this process.

``interface`` is what a stage asks of a runtime, and that of this process, ``on_ray`` that of a
cluster; ``loop`` is the one training loop.

Of Ray: ``cluster`` connects, with a prepared ``process.environment``, ``capacity`` knows what there
is and what could be, ``nodes`` which of it to use, ``pool`` shares out pieces of work, ``training``
puts the loop on Ray Train, ``jobs`` submits a run to a cluster, ``tracking`` tells a service of
curves.
"""
