"""What there is to set, and what follows from it.

``schema`` is the config, a section a stage; ``reading`` makes one of YAML and ``--set``, and lists
all there is, ``graph`` says which artifact each stage of a config makes of which others.

Imports neither torch nor Ray: asking what is there takes a fraction of a second.
"""
