"""What can go wrong, as a tree.

::

    BendError                 shown to the user as one line, exit code 2
    ├── ConfigError           a key, value or combination in a config file or override
    ├── DataError             a data set that is missing, broken or does not fit
    ├── StoreError            a store that cannot be reached, read or written
    │   └── CorruptArtifact   a file whose content is not what its manifest says
    ├── ClusterError          no cluster, or one that can never give what was asked
    └── TrainingError         a fit that diverged or kept failing

Every class takes one message and nothing else: Ray pickles exceptions between processes and
loses any that need more. A message says what was expected, what came, and what to do.
Anything that is not a ``BendError`` is our bug and keeps its traceback.
"""


class BendError(Exception):
    """Base of all errors a user can cause or mend."""


class ConfigError(BendError):
    """A configuration that cannot mean anything."""


class DataError(BendError):
    """A data set that is missing, broken, or does not fit the architecture."""


class StoreError(BendError):
    """A store that cannot be reached, read or written."""


class CorruptArtifact(StoreError):  # noqa: N818 - the state of a thing, as in zipfile.BadZipFile
    """An artifact whose files are not what its manifest says."""


class ClusterError(BendError):
    """No Ray cluster, or one that can never give what a stage asks for."""


class TrainingError(BendError):
    """A fit that diverged, or failed more often than it may."""
