"""Where work runs: on Ray, or in this process.

``interface`` is what a stage asks of a runtime, ``on_ray`` and ``local`` are the two that there
are; ``loop`` is the one training loop.

Of Ray: ``environment`` is set before it is imported, ``address`` and ``cluster`` connect and ask
for room, ``capacity`` knows what there is and what could be, ``pool`` shares out pieces of work,
``training`` puts the loop on Ray Train, ``jobs`` submits a run to a cluster, ``tracking`` tells a
service of curves.
"""
