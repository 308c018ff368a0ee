"""Estimators that scikit-learn accepts: bags of networks on tables, trained in this process.

>>> from sklearn.datasets import load_iris
>>> from bend_ray.sklearn import BagClassifier
>>> x, y = load_iris(return_X_y=True)
>>> BagClassifier(members=8, random_state=0).fit(x, y).score(x, y) > 0.9
True

``rows`` reads what a user gives, ``members`` holds the contest over the folds, or lets the
pipeline's own stages make who votes, ``estimators`` puts them together.
"""

from bend_ray.sklearn.estimators import BagClassifier, BagRegressor

__all__ = ["BagClassifier", "BagRegressor"]
