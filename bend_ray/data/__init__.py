"""Labelled examples: from files and URIs to parts in memory.

``datasets`` is the axis: to add a data set, one class with ``_load`` and its name in the union at
the bottom. ``files`` says which files are a part and tells their content apart; ``images`` opens
images as ``sources``, whose classes are names; ``decoding`` makes pixels of an image file, for
training and serving alike. ``arrays`` reads arrays in files, ``given`` what a user has in memory,
``tables`` rows, of whose ``columns`` numbers are made, and ``csv_text`` those of CSV, for serving
too; ``splits`` draws parts and checks them.
``examples`` holds what is read, ``streaming`` what is decoded when it is needed; ``augmentation``
varies it. ``inputs`` is what models are asked about, corruptions of the test part among them.

May import numpy, pyarrow, Pillow, torch and torchvision, all but the first when they are first
used; knows neither Ray nor networks.
"""
