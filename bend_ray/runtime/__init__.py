"""Where work runs: on Ray, or in this process.

``interface`` is what a stage asks of a runtime, and that of this process, ``on_ray`` that of a
cluster; ``loop`` is the one training loop.

Of Ray: ``cluster`` connects, with a prepared ``process.environment``; ``nodes`` knows what there
is, what could be and what to use; ``pool`` shares out pieces of work, ``training`` puts the loop on
Ray Train, ``jobs`` submits a run to a cluster, ``tracking`` tells services of it.
"""
