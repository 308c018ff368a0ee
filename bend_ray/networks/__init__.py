"""What a base classifier is, and how one, or a cohort of them, is fitted.

``architectures`` is an axis: to add one, a spec with ``build`` and its name in the union at the
bottom. ``protocols`` says which models a population is made of; ``fitting`` trains them on what
``batches`` gives; ``stacking`` evaluates many models of one architecture as one, chains of dense
layers by ``dense``; ``batchnorm`` recomputes the running statistics of models that no training gave
them to.

May import torch, torchvision and ``data``; knows neither Ray nor the other rooms.
"""
