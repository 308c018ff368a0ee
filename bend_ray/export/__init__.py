"""The bag as files that other tools load: ``bend export``, and what ``bend serve`` answers from.

``card`` is config.json, ``files`` copies and checks a bag, ``members`` has its networks in torch
and one as an ONNX graph, ``graphs`` makes one graph of many members and runs it, ``folder`` puts it
all together, with a README.

``card``, ``files`` and ``graphs`` import no torch: a server reads a bag with numpy and onnx alone.
"""
