"""Labelled examples: from files and URIs to parts in memory.

``datasets`` is the axis: to add a data set, one class with ``load`` and its name in the union at
the bottom. ``files`` says which files are a part and tells their content apart, ``parquet``,
``folders`` and ``vision`` open them as ``sources``, whose classes are names; ``decoding`` makes
pixels of an image file, for training and serving alike; ``arrays`` reads arrays in files, ``given``
what a user has in memory; ``examples`` holds what is read, ``streaming`` what is decoded when it is
needed; ``augmentation`` varies it.

May import numpy, pyarrow, Pillow, torch and torchvision; knows neither Ray nor networks.
"""
