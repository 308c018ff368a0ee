"""The bag behind HTTP: ``bend serve``.

``bag`` is the maths, ``pictures``, ``queries`` and ``oip`` read what clients send, ``app`` is
the HTTP interface over an ``Answering``, ``guard`` what stands before it, ``meters`` what is
counted. None of them knows Ray, and none imports torch: a replica answers with numpy and
ONNX Runtime alone. ``deployment`` is the Ray Serve deployment, its config file, and its start on
this machine; ``direct`` serves without Ray.
"""
