"""The command ``bend``: a file a door. Options are parsed here, and nothing is decided.

To add a command: a function in the file of its subject, and its name in ``main``.
"""
