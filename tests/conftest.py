"""What every test process shares."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
from fuzzing import FULL
from hypothesis import settings

from bend_ray.stages import prepare_environment

# Before torch is imported. Two threads under contention are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Jobs start `python` as the cluster's machines find it.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# Before ray is imported, by whichever test module is collected first.
prepare_environment(None)


# Before the command line chooses one of them.
settings.register_profile(FULL, settings.get_profile("default"))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test of ``torch.optim``'s classes the 4 s import of torch's compiler.

    They import it for nothing but to say that it shall not compile them.
    """
    if "torch._dynamo" in sys.modules:
        return
    compiler = types.ModuleType("torch._dynamo")
    compiler.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    compiler.graph_break = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch._dynamo", compiler)
