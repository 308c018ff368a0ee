"""What a stage leaves behind: immutable directories, committed by a manifest written last.

``directory`` holds an artifact's files, ``store`` names and commits it (``manifest`` and ``cost``
say what a commit records), ``lease`` keeps two runs off one artifact, ``population`` and
``shards`` hold classifiers as rows, ``weights`` holds state dicts and checkpoints.

All that asks the store raises StoreError where it is refused, cannot be reached, or holds nothing
of that name; all that reads raises CorruptArtifact, with the file, where it holds something else
than was written.

May import pyarrow, numpy, pydantic, safetensors and ``bend_ray.storage``, ``spec``, ``process`` and
``errors``; never ray, and torch only in ``weights``, so that asking for a status costs no torch.

To add a format: one file with a ``write_...(artifact, ...) -> name`` that goes through
``artifact.open_output`` and a ``read_...`` that raises ``CorruptArtifact`` naming the file.
"""
