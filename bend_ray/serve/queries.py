"""What clients send, turned into inputs, or into a ``Refusal`` that says what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from pydantic_core import from_json

from bend_ray.data.arrays import array_of
from bend_ray.data.columns import raw_column
from bend_ray.data.csv_text import read_csv
from bend_ray.data.given import inputs_of
from bend_ray.ensemble import conformal
from bend_ray.ensemble.programs import ClassesProgram, NumbersProgram
from bend_ray.errors import BendError, DataError
from bend_ray.export.card import Card, Input
from bend_ray.serve.settings import Stop, text_bytes
from bend_ray.spec import Spec, first_problem
from bend_ray.storage.masking import cause

RETRY_AFTER = 2
"""Seconds that a client is told to wait where it may ask again."""
_HEADERS = {
    401: {"www-authenticate": "Bearer"},
    415: {"accept-encoding": "gzip, deflate"},
    503: {"retry-after": str(RETRY_AFTER)},
}


class Refusal(BendError):  # noqa: N818 - it is the client's error, not ours
    """An answer that says no, with a status of its own; any other ``BendError`` is 422.

    ``status`` is 400 to 499, or 503 where it may be asked again.
    """

    def __init__(self, status: int, message: str) -> None:
        # What it quotes of a request may have no form in UTF-8.
        self.message = message.encode("utf-8", "replace").decode()
        super().__init__(self.message)
        self.status, self.headers = status, _HEADERS.get(status, {})

    @classmethod
    def of(cls, error: BendError) -> Refusal:
        """What a client is told of an error."""
        return error if isinstance(error, cls) else cls(422, str(error))


Given = TypeVar("Given", bound=Spec)


Inputs = dict[str, NDArray[Any]]
"""Raw, by the names of a bag's card, each with the examples as its first dimension."""
Answers = dict[str, NDArray[Any]]
"""What a bag says about B examples: its task's ``outputs``, and ``members_used``.

Of a member that was not asked, numbers are 0 and labels -1. What was promised beside them is
``set`` ``(B, C)``, ``interval`` ``(B, 2)`` or ``(B, T, 2)``, and ``refused``, texts: where one is
not empty, the label is -1.
"""


# Some clients of gRPC have texts and whole numbers alone as parameters.
_FromText = Field(strict=False)


class Wants(Spec, strict=True):
    """What a request can ask for beside the examples."""

    stop_when_decided: bool | None = None
    """Stop when the members left cannot change the label."""
    confidence: Annotated[float, Field(gt=0, le=1), _FromText] | None = None
    """Stop when the label has this probability."""
    coverage: Annotated[conformal.Share, _FromText] | None = None
    """Add the set, or interval, that holds the truth so often; all members are asked then."""
    sets: str | None = None
    """Which sets, of those that the bag has; beside ``coverage``."""
    refuse_below: Annotated[conformal.Share, _FromText] | None = None
    """Rather be not sure than right less often; all members are asked then."""

    def check(self, card: Card) -> None:
        """Refuse what has no meaning for a bag, or what it cannot promise."""
        known = card.task.known
        for name in self.model_fields_set & (_WORDS - set(known)):
            told = f"{name}: expected of {', '.join(known)}, as the bag is of a {card.task.kind}"
            raise DataError(told)
        if self.refuse_below is not None:
            card.promises.threshold(self.refuse_below)
        if self.coverage is not None:
            card.promises.check(self.coverage, self.sets)
        elif self.sets is not None:
            card.promises.kind_of(0.5, self.sets)
            raise DataError("sets: expected a coverage beside it, as in coverage=0.9")

    def stop(self, default: Stop) -> Stop:
        """When to stop, or what the deployment does; never before what is promised."""
        if self.coverage is not None or self.refuse_below is not None:
            return Stop(everyone=True)
        if self.stop_when_decided is None and self.confidence is None:
            return default
        return Stop(bool(self.stop_when_decided), self.confidence)

    def promised(self, card: Card, said: Answers) -> Answers:
        """Answers with the sets or intervals that are asked for, and without unsure labels."""
        answers_BA, found = card.task.bag_answers(said), dict(said)
        if self.coverage is not None:
            promises = card.promises
            found[promises.promised] = promises.sets(answers_BA, self.coverage, self.sets)
        if self.refuse_below is not None:
            why_B = np.array(card.promises.refusals(answers_BA, self.refuse_below), dtype=object)
            found |= {"refused": why_B, "label": np.where(why_B == "", found["label"], -1)}
        return found


_WORDS = {*ClassesProgram.known, *NumbersProgram.known}
"""That have a meaning for some bags."""


def given(what: type[Given], value: Mapping[str, Any], strict: bool | None = None) -> Given:
    """What a client gives, if it is what is expected; not ``strict`` where all are texts."""
    try:
        return what.model_validate(value, strict=strict)
    except ValidationError as error:
        told, first = first_problem(error)[:300], error.errors()[0]
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            told = f"{told}; expected of {', '.join(what.model_fields)}"
        elif isinstance(first["input"], str):
            told = f"{told}, got {first['input'][:64]}"
    raise DataError(told)


def check_size(content: bytes, card: Card, examples: int) -> None:
    """Refuse more bytes than so many examples of the bag's can need."""
    if len(content) > (most := text_bytes(card, examples)):
        raise Refusal(413, f"expected a body of at most {most} bytes, got {len(content)}")


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a text."""
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"expected JSON, got what does not parse: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"expected a JSON object, got {_kind(value)}")
    return value


def given_inputs(x: Any, card: Card) -> Inputs:
    """The inputs of an object of a user's: an array, tensor, frame, or several by name.

    Of a table also a list of rows by name; an array has to be of numbers and truth values alone, in
    the order of the card. DataError where they are not what the bag takes.
    """
    try:
        if card.columns and isinstance(x, list) and x and isinstance(x[0], Mapping):
            return _by_name(x, card, "rows")
        if card.columns:
            return _chosen(_columns_of(x, card), card, "x")
        found = dict(inputs_of(x))
        if len(found) == len(card.inputs) == 1:
            found = dict(zip(card.inputs, found.values(), strict=True))
        _check_names(found, card, "x")
        return together(
            {n: fitted(array_of(found[n], n), n, own) for n, own in card.inputs.items()}
        )
    except DataError as error:
        raise DataError(f"x: {str(error).removeprefix('x: ')}") from None
    except (pa.ArrowException, TypeError, ValueError) as error:  # of a frame that is no table
        raise DataError(f"x: expected {', '.join(card.inputs)}, got: {cause(error)}") from None


def inputs_of_json(content: bytes, card: Card) -> Inputs:
    """The inputs in ``{"instances": [...]}``: each an example, of several inputs an object.

    A table's rows may have columns beside those of the bag, as in CSV.
    """
    body = parse_object(content)
    if set(body) != {"instances"}:
        keys = ", ".join(sorted(body)[:5])[:64] or "no key"
        raise DataError(f"expected an object with instances and nothing else, got {keys}")
    rows = body["instances"]
    if not isinstance(rows, list):
        raise DataError(f"instances: expected a list of examples, got {_kind(rows)}")
    if len(card.inputs) == 1 and not (rows and isinstance(rows[0], dict)):
        rows = [dict.fromkeys(card.inputs, row) for row in rows]
    return _by_name(rows, card, "instances")


def _by_name(rows: Sequence[Any], card: Card, where: str) -> Inputs:
    """The inputs of rows, each a mapping of them."""
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}[{index}]: expected an object, got {_kind(row)}")
        _check_names(row, card, f"{where}[{index}]")
    return _chosen(((name, [row[name] for row in rows]) for name in card.inputs), card, where)


def inputs_of_csv(content: bytes, card: Card, advice: str = "") -> Inputs:
    """A bag's columns in a CSV text with a line of names; ``advice`` is for who sends no rows."""
    if len(content.splitlines()) < 2:
        told = "a line of names and lines of rows, got at most one line"
        raise DataError(f"CSV: expected {told}{advice}")
    try:
        table = read_csv(pa.BufferReader(content), "CSV")
    except pa.ArrowException as error:
        raise DataError(f"expected CSV, got: {str(error)[:200]}") from None
    if not card.inputs.keys() & set(table.column_names):
        told = f"{_few(card.inputs)}, got {_few(table.column_names)}"
        raise DataError(f"CSV: expected a first line of names, {told}")
    return _chosen(zip(table.column_names, table.columns, strict=True), card, "CSV")


def _columns_of(x: Any, card: Card) -> Iterable[tuple[Any, Any]]:
    """Columns and what they are called, of what holds a table's."""
    if hasattr(x, "iloc") or isinstance(x, Mapping):
        # Each by itself, as one of objects may hold values of several types.
        return x.items()  # type: ignore[no-any-return]
    if hasattr(x, "__arrow_c_stream__"):
        table = pa.table(x)
        return zip(table.column_names, table.columns, strict=True)
    if others := [n for n, each in card.columns.items() if each.kind in ("category", "date")]:
        raise DataError(
            f"expected a frame, or columns or rows by name, as {others[0]} is a "
            f"{card.columns[others[0]].kind}, got a {type(x).__name__}"
        )
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != len(card.inputs):
        raise DataError(f"expected {len(card.inputs)} columns, got shape {list(array.shape)}")
    return zip(card.inputs, array.T, strict=True)


def _chosen(columns: Iterable[tuple[Any, Any]], card: Card, where: str) -> Inputs:
    """Raw columns of a bag's, among those that are there."""
    there = [(str(name), values) for name, values in columns]
    _check_names(counts := Counter(name for name, _ in there), card, where)
    if twice := [name for name in card.inputs if counts[name] > 1]:
        raise DataError(f"{where}: expected one column {twice[0]}, got {counts[twice[0]]}")
    own = dict(there)
    return together({n: given_column(own[n], n, its) for n, its in card.inputs.items()})


def given_column(values: Any, name: str, own: Input, *, seconds: bool = False) -> NDArray[Any]:
    """Values of an input; of a column as it was in training, dates as texts or in ``seconds``."""
    if own.column is None:
        return fitted(numbers(values, name), name, own)
    kind = own.column.kind
    raw = raw_column(values, "number" if seconds and kind == "date" else kind, name)
    return raw.astype(object) if own.dtype == "string" else raw


def _check_names(found: Collection[str], card: Card, where: str) -> None:
    lacks = [name for name in card.inputs if name not in found]
    more = [] if card.columns else [name for name in found if name not in card.inputs]
    if lacks or more:
        parts = {"missing": lacks, "unknown": more}
        told = "; ".join(f"{what}: {_few(names)}" for what, names in parts.items() if names)
        raise DataError(f"{where}: expected {_few(card.inputs)}; {told}")


def _few(names: Collection[str], most: int = 10) -> str:
    """Names in a line, of many the first ones."""
    shown = ", ".join(str(name)[:64] for name in list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def together(inputs: Inputs) -> Inputs:
    """Inputs that are of the same examples."""
    counts = {name: len(values) for name, values in inputs.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"expected as many examples of each input, got {counts}")
    return inputs


def numbers(value: Any, where: str) -> NDArray[Any]:
    """Nested lists as an array."""
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list of numbers, got {_kind(value)}")
    array = array_of(value, where)
    if array.size and _holds_truth(value):
        # Among numbers, numpy makes them numbers.
        raise DataError(f"{where}: expected numbers, got true or false")
    return array


def _holds_truth(value: list[Any]) -> bool:
    kinds = set(map(type, value))
    return bool in kinds or (
        list in kinds and any(_holds_truth(v) for v in value if type(v) is list)
    )


def fitted(array: NDArray[Any], where: str, own: Input) -> NDArray[Any]:
    """Examples of an input, in the type that the network is given.

    A grey image may leave out its one channel.
    """
    if array.shape[1:] != own.shape and own.shape[:1] == (1,) and array.shape[1:] == own.shape[1:]:
        array = array[:, None]
    if array.ndim == 0 or (len(array) and array.shape[1:] != own.shape):
        sizes = "".join(f", {size}" for size in own.shape)
        got = list(array.shape)[:8]
        raise DataError(f"{where}: expected examples, shape [n{sizes}], got {got}")
    array = array.reshape(len(array), *own.shape)
    if array.size and array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected numbers, got others")
    low, high = own.limits
    with np.errstate(over="ignore"):
        values = array.astype(np.float32) if own.dtype == "float32" else array
    if not values.size:
        return values.astype(own.dtype)
    if own.dtype == "float32":
        if not np.isfinite(values).all():
            raise DataError(f"{where}: expected finite numbers, got others")
    elif not np.array_equal(values, np.trunc(values)):
        raise DataError(f"{where}: expected whole numbers, got others")
    elif not (values.min() >= low and values.max() <= min(high, 2**63 - 1025)):
        told = f"from {low:g} to {high:g}" if own.dtype == "uint8" else "that index a table"
        span = f"{values.min()} to {values.max()}"
        raise DataError(f"{where}: expected whole numbers {told}, as in training, got {span}")
    return np.ascontiguousarray(values, dtype=own.dtype)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
