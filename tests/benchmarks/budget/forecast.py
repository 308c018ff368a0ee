"""Is guidance better learnt? Rungs from a plain average to a ridge on each coordinate, equal cost.

    cd tests/benchmarks/budget
    BEND_DATASETS=... uv run python forecast.py fit digits_smoothed.yaml --output fitted.json
    BEND_DATASETS=... uv run python forecast.py use cifar10_smoothed.yaml --fitted fitted.json \\
        --repeats 20-22 --output cifar10
    BEND_DATASETS=... uv run python forecast.py table cifar10_smoothed.yaml --output cifar10 \\
        [--test]

A chain follows its schedule for a quarter and leaves 16 tails, of which the later half is
averaged, the first rung. Ours moves that average on, by one scalar, away from the average of the
earlier half. The learnt rungs are fitted, with ``fit``, to chains that go on for as many tails
again: the average of eight tails that ends ``horizon`` tails later is predicted from what the
chain had left before. They are a scalar a layer type by least squares, and a ridge on every
coordinate, whose features are the differences of five states of the chain to the average, in units
of the layer's way. Layer types are common to all networks (``layer_type``), so that what one task
taught can be used on another.

``use`` trains nothing that is learnt. It keeps each method's models, and a line a (split, budget,
method) with figures of the validation part, which choose each rung's knobs. ``table --test`` asks
the chosen models, and no others, on the test part. Annealing is paid for with a chain's last tails.
Training the forecasts is not charged; ``fit`` tells what it took.

Shape letters: T tails, M chains, P parameters, F features, N images, C classes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from chains import Plan, Task
from readouts import scores, validation_scores, vote
from specs import Bench, Chains, read_bench
from table import difference
from torch import Tensor

from bend_ray.ensemble.votes import fit_temperature
from bend_ray.networks.recipe import Stretch
from bend_ray.parameters.layout import Entry

TAILS = 16
KEPT = 8
HORIZONS = (4, 8, 16)
STATES = ((0, 4), (4, 8), (8, 12), (12, 14), (14, 16))
"""First and last tail of the means that a coordinate's forecast sees."""
RIDGE = 1e-2
"""Of the features' mean square."""
SCALARS = (0.25, 0.5, 0.75, 1.0, 1.5)
STRENGTHS = (1.0, 2.0)
"""Multipliers of what is forecast."""
ANNEALED = ("average", "scalar_0.5", "scalar_1.0", "layers_8_x1.0", "layers_16_x1.0")
ANNEALED += ("ridge_8_x1.0", "ridge_16_x1.0")
"""What is annealed as well, for 5 % of a chain."""
MORE_ANNEALING = (0.1, 0.2)
"""Of averages, in the length of a chain."""
FAMILIES = {"": 1.0, "_short": 2.0, "_longer": 0.5}
"""Chains an ordinary training's cost is shared by."""
Made = dict[tuple[str, str], Tensor]
"""Models ``(M, P)`` by rung and name."""


def chains_of(per_unit: float) -> Chains:
    """As the budget bench's ``averages`` are made of."""
    return Chains(per_unit=per_unit, trunk_fraction=0.25, tails=TAILS, kept=0.5)


def layer_type(entry: Entry, entries: Sequence[Entry]) -> str:
    """What a tensor is in any network: first, hidden or last weights, a scale or a shift."""
    matrices = [each.name for each in entries if len(each.shape) > 1]
    if entry.name in matrices:
        place = matrices.index(entry.name)
        return {0: "first", len(matrices) - 1: "last"}.get(place, "hidden")
    if entry.name.removesuffix("bias") == matrices[-1].removesuffix("weight"):
        return "last shift"
    return "scale" if entry.name.endswith("weight") else "shift"


def layers(task: Task) -> Iterator[tuple[str, slice]]:
    """Each trained tensor's type and place in the vector."""
    entries = [entry for entry in task.layout.entries if entry.trainable]
    for entry in entries:
        yield layer_type(entry, entries), slice(entry.offset, entry.offset + entry.size)


def average(theta_TMP: Tensor) -> Tensor:
    """Of the kept tails."""
    return theta_TMP[KEPT:TAILS].mean(dim=0)


def way(theta_TMP: Tensor) -> Tensor:
    """From the average of the earlier tails to that of the kept ones."""
    return average(theta_TMP) - theta_TMP[:KEPT].mean(dim=0)


def features(theta_TMP: Tensor, here: slice) -> tuple[Tensor, Tensor]:
    """Of a tensor's coordinates ``(M, p, F)``, and the unit ``(M, 1)`` they are measured in."""
    mean_MP, way_MP = average(theta_TMP)[:, here], way(theta_TMP)[:, here]
    unit_M1 = way_MP.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    size_M1 = mean_MP.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    states = [theta_TMP[first:last, :, here].mean(dim=0) - mean_MP for first, last in STATES]
    columns = [state_MP / unit_M1 for state_MP in states] + [mean_MP / size_M1]
    return torch.stack(columns, dim=-1), unit_M1


def fit(bench: Bench, starts: int, families: Sequence[str]) -> dict[str, Any]:
    """Sums over chains, from which both learnt rungs follow."""
    began, sums = time.process_time(), dict[str, dict[str, Tensor]]()
    for number, varied in enumerate(variants(bench)):
        task = Task(varied, 1000 + number)
        for family in families:
            theta_TMP = long_tails(task, starts, bench.recipe.epochs / FAMILIES[family])
            for kind, here in layers(task):
                for horizon in HORIZONS:
                    kept = sums.setdefault(f"{family}/{horizon}/{kind}", {})
                    for name, told in _sums(theta_TMP, here, horizon).items():
                        kept[name] = kept[name] + told if name in kept else told
    plain = {key: {name: t.tolist() for name, t in kept.items()} for key, kept in sums.items()}
    return {"sums": plain, "seconds": time.process_time() - began}


def _sums(theta_TMP: Tensor, here: slice, horizon: int) -> dict[str, Tensor]:
    """Of a tensor: products of features x, way w and what is to be forecast y, means over numbers.

    Every tensor of every chain weighs the same, however many numbers it has.
    """
    x_MpF, unit_M1 = features(theta_TMP, here)
    last = TAILS + horizon
    goal_MP = theta_TMP[last - KEPT : last, :, here].mean(dim=0) - average(theta_TMP)[:, here]
    x_nF = x_MpF.flatten(0, 1).double()
    y_n = (goal_MP / unit_M1).flatten().double()
    w_n = (way(theta_TMP)[:, here] / unit_M1).flatten().double()
    products = {
        "xx": x_nF.T @ x_nF,
        "xy": x_nF.T @ y_n,
        "ww": w_n @ w_n,
        "wy": w_n @ y_n,
        "yy": y_n @ y_n,
    }
    return {name: each / x_MpF.shape[1] for name, each in products.items()}


def variants(bench: Bench) -> list[Bench]:
    """The task as it is; twice as wide; at half the rate; without label smoothing."""
    recipe, architecture = bench.recipe, bench.architecture
    widths = "hidden" if hasattr(architecture, "hidden") else "channels"
    wider = {widths: tuple(2 * width for width in getattr(architecture, widths))}
    slower = {"learning_rate": recipe.optimizer.learning_rate / 2}
    slow = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=slower)})
    return [
        bench,
        bench.model_copy(update={"architecture": architecture.model_copy(update=wider)}),
        bench.model_copy(update={"recipe": slow}),
        bench.model_copy(update={"recipe": recipe.model_copy(update={"label_smoothing": 0.0})}),
    ]


def long_tails(task: Task, count: int, epochs: float) -> Tensor:
    """Tails ``(T, M, P)`` of chains of so many epochs, and as many again of the same distance."""
    plan, recipe = Plan(count, epochs, TAILS, 0, 0.0), task.bench.recipe
    stretch = Stretch(
        start=0.25 * epochs,
        epochs=1.5 * epochs,
        constant_rate=recipe.optimizer.learning_rate,
        snapshots=2 * TAILS,
    )
    trunk_MP = task._trunks(chains_of(1.0), plan, count)
    longer = recipe.model_copy(update={"epochs": 1.75 * epochs})
    return task._fit(trunk_MP, longer, stretch, ("long tails", epochs))


class Forecasts:
    """Both learnt rungs, from the sums of any number of tasks, which weigh alike."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.sums: dict[str, dict[str, Tensor]] = {}
        for file in files:
            for key, told in json.loads(file.read_text(encoding="utf-8"))["sums"].items():
                kept = self.sums.setdefault(key, {})
                for name, values in told.items():
                    each = torch.tensor(values, dtype=torch.float64) / told["ww"]
                    kept[name] = kept[name] + each if name in kept else each

    def scalar(self, key: str) -> float:
        """Of a layer type, by least squares; zero for one that was not seen."""
        sums = self.sums.get(key)
        return float(sums["wy"] / sums["ww"]) if sums else 0.0

    def ridge(self, key: str) -> Tensor:
        """Weights ``(F,)`` of a coordinate's features; zeros for a layer type not seen."""
        sums = self.sums.get(key)
        if sums is None:
            return torch.zeros(len(STATES) + 1)
        xx_FF = sums["xx"]
        penalty_FF = RIDGE * xx_FF.diagonal().mean() * torch.eye(len(xx_FF))
        return torch.linalg.solve(xx_FF + penalty_FF, sums["xy"]).float()

    def step(self, task: Task, theta_TMP: Tensor, family: str, rung: str, horizon: int) -> Tensor:
        """What a rung adds to the average ``(M, P)``."""
        step_MP, way_MP = torch.zeros_like(theta_TMP[0]), way(theta_TMP)
        for kind, here in layers(task):
            key = f"{family}/{horizon}/{kind}"
            if rung == "layers":
                step_MP[:, here] = self.scalar(key) * way_MP[:, here]
            else:
                x_MpF, unit_M1 = features(theta_TMP, here)
                step_MP[:, here] = unit_M1 * (x_MpF @ self.ridge(key))
        return step_MP

    def told(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Scalars, and shares of the square of what is forecast that each rung explains."""
        for key, sums in self.sums.items():
            weight_F = self.ridge(key).double()
            left = sums["yy"] - 2 * weight_F @ sums["xy"] + weight_F @ sums["xx"] @ weight_F
            yield (
                key,
                {
                    "scalar": self.scalar(key),
                    "explained_by_scalar": float(sums["wy"] ** 2 / sums["ww"] / sums["yy"]),
                    "explained_by_ridge": 1 - float(left / sums["yy"]),
                },
            )


def moved(task: Task, forecasts: Forecasts, theta_TMP: Tensor, family: str) -> Made:
    """Every rung's models, neither annealed nor with statistics of their own."""
    mean_MP, way_MP = average(theta_TMP), way(theta_TMP)
    steps = {("average", "average"): torch.zeros_like(mean_MP)}
    for latest in (2, 4):
        steps["rivals", f"lawa_{latest}"] = theta_TMP[-latest:].mean(dim=0) - mean_MP
    for decay in (0.7, 0.9):
        weight_T = decay ** torch.arange(len(theta_TMP) - 1, -1, -1.0)
        ema_MP = torch.einsum("t,tmp->mp", weight_T / weight_T.sum(), theta_TMP)
        steps["rivals", f"ema_{decay}"] = ema_MP - mean_MP
    for scalar in SCALARS:
        steps["scalar", f"scalar_{scalar}"] = scalar * way_MP
    for rung in ("layers", "ridge"):
        for horizon in HORIZONS:
            step_MP = forecasts.step(task, theta_TMP, family, rung, horizon)
            for strength in STRENGTHS:
                steps[rung, f"{rung}_{horizon}_x{strength}"] = strength * step_MP
    for step_MP in steps.values():
        step_MP[:, task.stack.num_trainable :] = 0.0
    return {key: mean_MP + step_MP for key, step_MP in steps.items()}


def made(task: Task, forecasts: Forecasts, family: str, budget: int) -> Made:
    """All models that vote, of one family of chains."""
    chains = chains_of(FAMILIES[family])
    plan = task.plan(chains, budget)
    theta_TMP = task.tails(chains, plan)
    models: Made = {}
    for (rung, name), theta_MP in moved(task, forecasts, theta_TMP, family).items():
        models[rung, name + family] = task.recalibrated(theta_MP)
    rate = task.bench.recipe.optimizer.learning_rate / 4
    for share in (0.05, *MORE_ANNEALING):
        paid_TMP = theta_TMP[: TAILS - round(share / (1 - chains.trunk_fraction) * TAILS)]
        for (rung, name), theta_MP in moved(task, forecasts, paid_TMP, family).items():
            if share in MORE_ANNEALING and name == "average":
                rung = "rivals"
            elif share in MORE_ANNEALING or name not in ANNEALED:
                continue
            called = f"{name}_annealed_{share}{family}"
            steps = round(share * plan.steps)
            models[rung, called] = task.repaired(theta_MP, steps, rate, (called,))
    return models


def use(
    task: Task, forecasts: Forecasts, families: Sequence[str], budgets: Sequence[int]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """A split's lines and models ``(M, P)``; chains of a smaller budget are some of a larger's."""
    most, labels_N = max(budgets), task.dataset.validation.labels_N
    whole = {("rivals", "deep_ensemble"): task.whole(most, task.bench.recipe.epochs)}
    found = [(1.0, whole)]
    found += [(FAMILIES[name], made(task, forecasts, name, most)) for name in families]
    for per_unit, models in found:
        for (rung, name), theta_MP in models.items():
            logits_MNC = task.logits(theta_MP, task.dataset.validation)
            for budget in budgets:
                count = round(per_unit * budget)
                for geometric in (False, True)[:count]:
                    told = validation_scores(vote(logits_MNC[:count], geometric), labels_N)
                    line = {"split": task.repeat, "budget": budget, "rung": rung}
                    line |= {"method": name + "_geometric" * geometric, "validation": told}
                    yield line, theta_MP[:count]


def table(bench: Bench, folder: Path, part: str) -> None:
    """Of each budget: every rung as validation chooses it, and our scalar minus it."""
    text = (folder / "lines.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    for budget in sorted({line["budget"] for line in lines}):
        by_name: dict[str, dict[int, Any]] = {}
        rungs: dict[str, set[str]] = {}
        for line in (each for each in lines if each["budget"] == budget):
            by_name.setdefault(line["method"], {})[line["split"]] = line
            rungs.setdefault(line["rung"], set()).add(line["method"])
        chosen = _chosen(rungs, by_name)
        if part == "test":
            for name in chosen.values():
                _ask(bench, folder, by_name[name])
        splits = len(by_name[chosen["scalar"]])
        print(f"\n### {folder.name}, B = {budget}, {part}, {splits} splits\n")
        print("| rung | chosen | accuracy % | NLL | minus our scalar: accuracy; NLL |")
        print("|---|---|---|---|---|")
        for rung, name in chosen.items():
            rows, ours, told = by_name[name], by_name[chosen["scalar"]], []
            for key in ("accuracy", "nll_calibrated"):
                told.append(statistics.mean(row[part][key] for row in rows.values()))
                told.append(difference(rows, ours, part, key))
            print(f"| {rung} | {name} | {told[0]:.2f} | {told[2]:.4f} | {told[1]}; {told[3]} |")


def _chosen(rungs: dict[str, set[str]], by_name: dict[str, dict[int, Any]]) -> dict[str, str]:
    def mean(name: str) -> float:
        rows = by_name[name].values()
        return statistics.mean(row["validation"]["nll_calibrated"] for row in rows)

    found = {rung: min(sorted(names), key=mean) for rung, names in rungs.items()}
    for start in ("deep_ensemble", "average_annealed", "lawa", "ema"):
        found[start] = min((name for name in sorted(by_name) if name.startswith(start)), key=mean)
    for family in filter(None, FAMILIES):
        names = {f"average{family}", f"average{family}_geometric"} & by_name.keys()
        if names:
            found[f"average{family}"] = min(sorted(names), key=mean)
    return found


_TASKS: dict[int, Task] = {}


def _ask(bench: Bench, folder: Path, rows: dict[int, Any]) -> None:
    """Score the models behind lines on the test part."""
    for split, row in rows.items():
        if split not in _TASKS:
            _TASKS[split] = Task(bench, split)
        task = _TASKS[split]
        theta_MP = torch.load(folder / _file(row), weights_only=True)
        geometric, data = row["method"].endswith("_geometric"), task.dataset
        seen_NC = vote(task.logits(theta_MP, data.validation), geometric)
        temperature = fit_temperature(seen_NC, data.validation.labels_N)
        probs_NC = vote(task.logits(theta_MP, data.test), geometric)
        row["test"] = scores(probs_NC, data.test.labels_N, temperature)


def _file(line: dict[str, Any]) -> str:
    name = line["method"].removesuffix("_geometric")
    return f"{line['split']}-{line['budget']}-{name}.pt"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("fit", "use", "table"))
    parser.add_argument("config", type=Path, help="a .yaml of this folder")
    parser.add_argument("--output", type=Path, required=True, help="of fit a file, else a folder")
    parser.add_argument("--starts", type=int, default=8, help="chains of each variant of a task")
    parser.add_argument("--fitted", nargs="+", type=Path, help="what fit left, of any tasks")
    parser.add_argument("--repeats", default="20-22", help="splits")
    parser.add_argument("--budgets", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--test", action="store_true", help="open the test part: once, at the end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = read_bench(arguments.config)
    if arguments.what == "fit":
        told = fit(bench, arguments.starts, arguments.families)
        arguments.output.write_text(json.dumps(told), encoding="utf-8")
        for key, shares in Forecasts([arguments.output]).told():
            print(key, json.dumps({name: round(value, 3) for name, value in shares.items()}))
    elif arguments.what == "use":
        _use(bench, arguments)
    else:
        table(bench, arguments.output, "test" if arguments.test else "validation")


def _use(bench: Bench, arguments: argparse.Namespace) -> None:
    forecasts, folder = Forecasts(arguments.fitted), arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    first, _, last = arguments.repeats.partition("-")
    with (folder / "lines.jsonl").open("a", encoding="utf-8") as lines:
        for repeat in range(int(first), int(last or first) + 1):
            task = Task(bench, repeat)
            for line, theta_MP in use(task, forecasts, arguments.families, arguments.budgets):
                torch.save(theta_MP.clone(), folder / _file(line))
                lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
