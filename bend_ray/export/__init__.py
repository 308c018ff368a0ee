"""The bag as files that other tools load: ``bend export``, and what ``bend serve`` answers from.

``card`` is config.json, ``layers`` turns one
member into an ONNX graph, ``graphs`` makes one graph of many members, ``guide`` writes the folder's
README, ``folder`` puts it all together.

``card`` and ``graphs`` import no torch: a server reads a bag with numpy and onnx alone.
"""
