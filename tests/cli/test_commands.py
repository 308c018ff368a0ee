"""The command line without Ray: help, config, status and one-line refusals."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bend_ray.cli.main import cli, main
from bend_ray.config.reading import json_schema, knobs, load_config
from bend_ray.config.schema import PipelineConfig

SUBMIT = ["submit", "--address", "http://127.0.0.1:9", "--"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """``bend`` in this process and an empty folder, up to its exit."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["bend", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, shown.out, shown.err)

    return call


def test_help_names_every_stage_in_order_and_teaches_an_example() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    stages = ["seeds", "autoencoder", "latents", "generator", "samples", "evaluation"]
    places = [shown.index(f"\n  {stage} ") for stage in stages]
    assert places == sorted(places)
    assert "bend run" in shown
    assert "bend run configs/digits.yaml" in CliRunner().invoke(cli, ["run", "--help"]).output


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (["--members", "5"], "expected no --members beside it"),
        (["--set", "seed=3"], "expected no --set beside it"),
        (["--store", "x"], "expected no --store beside it"),
        (["--config-only"], "config.json"),
    ],
)
def test_serve_takes_an_export_for_what_it_is(run: Run, beside: list[str], told: str) -> None:
    done = run("serve", "--export", "nowhere", *beside)
    assert done.returncode == 2
    assert told in done.stderr


def test_config_prints_json_that_loads_and_explains_every_knob(run: Run, tmp_path: Path) -> None:
    done = run("config", "--set", "samples.count=96")
    (tmp_path / "resolved.json").write_text(done.stdout)
    assert json.loads(done.stdout)["samples"]["count"] == 96
    assert load_config(tmp_path / "resolved.json") == load_config(None, ["samples.count=96"])
    explained = done.stderr.splitlines()
    assert len(explained) == len(knobs())
    assert any(line.startswith("samples.count: Classifiers drawn") for line in explained)


def test_the_schema_is_all_that_is_printed(run: Run) -> None:
    done = run("config", "--schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json_schema()
    assert run("config", "--schema", "--set", "seed=1").returncode == 2


def test_an_empty_variable_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    assert "in /x," not in run("report", "--store", "~/x").stderr


def test_status_of_an_empty_store_is_all_missing(run: Run, tmp_path: Path) -> None:
    done = run("status", "--store", str(tmp_path / "store"))
    assert done.returncode == 0
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["missing"] * 7
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_status_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from bend_ray import pipeline;"
        "from bend_ray.config.schema import PipelineConfig;"
        f"list(pipeline.status(PipelineConfig(), {str(tmp_path)!r}));"
        "print([name for name in ('ray', 'torch', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["run", "--set", "seeds.architecture.hiden=[3]"],
            "did you mean seeds.architecture.hidden",
        ),
        (["run", "--set", "nothing.here=1"], "nothing"),
        (["run", "--set", "samples.count=0"], "samples.count"),
        (["run", "--set", "seeds.recipe.epochs=-1"], "seeds.recipe.epochs"),
        (["run", "--set", "autoencoder.model.latent_size=112"], "fewer than the 112 models"),
        (["run", "--set", "evaluation.bagging.size=49"], "at most samples.count = 48"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["run", "--store", "nowhere://x"], "nowhere://x"),
        (["run", "--address", "127.0.0.1:9"], "expected a Ray cluster to answer"),
        (["seeds", "--set", "dataset.num_train=1700"], "1797"),
        (["rnu"], "No such command"),
        (["run", "--json", "."], "--json .: expected a file that can be written"),
        (["run", "--json", "no/such/folder/x.json"], "No such file or directory"),
        (["run", "--repeats", "0"], "'--repeats'"),
        (["run", "--set", "tracking=nowhere"], "tracking: Input should be 'mlflow' or 'wandb'"),
        (["report"], "expected a committed evaluation in"),
        (["report", "--set", "seed=7"], "`bend run` with the same config makes it"),
        (["report", "--store", "nowhere://x"], "nowhere://x"),
        (["compare", "no-such-store"], "no-such-store: expected a store, a report or a result"),
        (["submit", "--", "run"], "Missing option '--address'"),
        ([*SUBMIT, "report"], "expected one of run, seeds, autoencoder"),
        ([*SUBMIT, "run"], "expected a place that every machine of the cluster reaches"),
        ([*SUBMIT, "run", "--store", "s3://b/r", "--set", "a.b=1"], "a: no such key"),
        ([*SUBMIT, "run", "--store", "/shared", "--json", "x.json"], "--json x.json: expected -"),
        ([*SUBMIT, "run", "--store", "/shared"], "expected the dashboard of a Ray cluster"),
        (
            ["submit", "--address", "127.0.0.1:9", "--", "run", "--store", "/shared"],
            "expected the dashboard of a Ray cluster, as in http://127.0.0.1:8265, got: no http://",
        ),
        (["compare"], "Missing argument 'STORE_OR_REPORT...'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(
    run: Run, arguments: list[str], expected: str, tmp_path: Path
) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bend-store" / "seeds").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write")
def test_a_store_that_cannot_be_written_is_refused_before_ray_starts(run: Run) -> None:
    done = run("run", "--store", "/proc/bend-store")
    assert done.returncode == 2
    assert "/proc/bend-store is not writable" in done.stderr
    assert "--store" in done.stderr
    assert "starting" not in done.stderr


def test_a_broken_manifest_is_named(run: Run, tmp_path: Path) -> None:
    from bend_ray.artifacts.store import Store
    from bend_ray.config.graph import graph_of

    artifact = graph_of(PipelineConfig(), Store(str(tmp_path))).evaluation
    manifest = Path(artifact.path) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    done = run("run", "--store", str(tmp_path))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert manifest.read_text() == "{"


def test_the_written_default_config_is_the_default_config() -> None:
    path = Path(__file__).parents[2] / "configs" / "digits.yaml"
    assert load_config(path) == PipelineConfig()
