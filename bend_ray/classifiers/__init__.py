"""What a base classifier is, and how one, or a cohort of them, is fitted.

``architectures`` and ``datasets`` are axes: to add a variant, write a spec class with ``build``
or ``load`` and put its name in the union at the bottom of the file. ``parquet`` and ``vision``
find the images of a data set, ``decoding`` makes pixels of them, ``images`` holds its parts.
``protocols`` says which models a population is made of; ``fitting`` trains them, on batches that
``augmentation`` varies; ``stacking`` evaluates many models of one architecture as one, by the
program that ``inference`` makes of it; ``batchnorm`` recomputes the running statistics of models
that no training gave them to.

May import torch, torchvision, Pillow and pyarrow; knows neither Ray nor the other rooms.
"""
