"""How a graph is run on this machine: chosen by measuring, when a bag is loaded."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnxruntime

from bend_ray.ensemble.programs import Outputs
from bend_ray.export.card import Card, noise
from bend_ray.export.graphs import Form

logger = logging.getLogger(__name__)

BUDGET_SECONDS = 0.3
"""For measuring one way at one batch size, when a bag is loaded."""
_REPEATS = 15

Ask = Callable[[Outputs], Outputs]
"""A program that is ready to run: its inputs to its outputs, by name."""


@dataclass(frozen=True)
class Way:
    """One way to run a graph: ``threads`` share an operator, or where ``parallel`` all of them."""

    form: Form
    threads: int
    parallel: bool = False

    def __str__(self) -> str:
        of = "operators in parallel" if self.parallel else "one operator after the other"
        return f"a graph of {self.form} members on {self.threads} threads, {of}"

    def ready(self, model: onnx.ModelProto) -> Ask:
        """The graph, optimised and ready to run."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1 if self.parallel else self.threads
        options.inter_op_num_threads = self.threads if self.parallel else 1
        if self.parallel:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        # Waiting threads must not burn the CPU of whoever reads the requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def ways(forms: tuple[Form, ...], threads: int) -> list[Way]:
    """What is worth trying with so many threads."""
    found = [Way(form, 1) for form in forms]
    if threads > 1:
        found += [Way(form, threads) for form in forms]
        found += [Way(form, threads, parallel=True) for form in forms if form == "unrolled"]
    return found


def fastest(
    candidates: list[Way],
    build: Callable[[Form], onnx.ModelProto],
    card: Card,
    batch: int,
) -> Way:
    """The way with the least time, one example and a whole batch counting the same."""
    if len(candidates) == 1:
        return candidates[0]
    times = {}
    for way in candidates:
        ask = way.ready(build(way.form))
        times[way] = [_median(ask, noise(card, count)) for count in (1, batch)]
        logger.debug("%s: %s s", way, times[way])
    best = [min(column) for column in zip(*times.values(), strict=True)]
    return min(times, key=lambda way: sum(t / b for t, b in zip(times[way], best, strict=True)))


def _median(ask: Ask, inputs: Outputs) -> float:
    ask(inputs)  # the first run allocates
    taken: list[float] = []
    while len(taken) < _REPEATS and sum(taken) < BUDGET_SECONDS:
        started = time.perf_counter()
        ask(inputs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
