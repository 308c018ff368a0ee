"""Our pages can be read, and what they show is there: links, commands, paths, knobs, YAML."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import prose
import pytest
import yaml

from bend_ray.cli.main import cli
from bend_ray.config.reading import knobs, load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError
from bend_ray.tune.space import TuneSection, load_section

ROOT = prose.ROOT
PAGES = prose.pages()
MOST_WORDS = 25
MOST_LINES = 200
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SHELL = ("", "sh", "bash")
KUSTOMIZE = {"resources", "components"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=named)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def spans(page: Path) -> list[str]:
    """Code in the lines of a page."""
    return [" ".join(span.split()) for span in CODE.findall(prose.unfenced(text_of(page)))]


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of a page's shell blocks, continued ones joined."""
    for block in prose.blocks(text_of(page)):
        if block.language in SHELL:
            yield from re.sub(r"\\\n\s*", "", block.text).splitlines()


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every ``bend ...`` in a page's shell blocks, ``bend`` left out."""
    for line in shell_lines(page):
        for part in re.split(r"&&|;| & |\bdo\b", line):
            found = re.search(r"(?:^|\s)bend (?=[a-z-])(.*)", part)
            if found:
                # What a loop of a shell puts in.
                yield shlex.split(re.sub(r"\$\w+", "0", found[1]), comments=True)


def until_redirected(words: list[str]) -> list[str]:
    ends = [index for index, word in enumerate(words) if word.startswith((">", "2>", "&"))]
    return words[: min(ends)] if ends else words


def parsed(words: list[str], group: click.Group = cli) -> tuple[str, dict[str, object]]:
    """The name of a command, and what it would be called with.

    Raises:
        click.UsageError: there is no such command, or it takes no such options.
    """
    name, *arguments = until_redirected(words)
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"no command {name}"
    if isinstance(command, click.Group):
        return parsed(arguments, command)
    given = command.make_context(name, arguments).params
    if name == "submit":
        return parsed(list(given["command"]))
    return name, given


def options_of(command: click.Command) -> set[str]:
    """Names of all options of a command and of those below it."""
    own = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*map(options_of, below))


@cache
def quoted(option: str) -> bool:
    """Whether a script of the tests takes an option, as its text says."""
    return any(f'"{option}"' in text_of(path) for path in (ROOT / "tests").rglob("*.py"))


@cache
def anchors(page: Path) -> frozenset[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose.unfenced(text_of(page)), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return frozenset(heading.replace(" ", "-") for heading in plain)


def valid_somewhere(overrides: list[str]) -> bool:
    """Whether overrides mean something, on top of the default or of a shipped config."""
    for path in (None, *CONFIGS):
        try:
            load_config(path, overrides)
        except ConfigError:
            continue
        return True
    return False


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= MOST_LINES


def test_the_readme_draws_the_house_as_the_contracts_have_it() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(each["layers"] for each in contracts["contracts"] if each["type"] == "layers")
    floors = [{room.strip().removeprefix("bend_ray.") for room in row.split("|")} for row in layers]
    drawn: list[set[str]] = []
    (house,) = (b.text for b in prose.blocks(text_of(ROOT / "README.md")) if "floor" in b.text)
    for line in house.splitlines()[1:]:
        number, room = line[:6].strip(), line[6:].split()[0]
        if number:
            drawn.append(set())
            assert len(floors) - len(drawn) - 1 == int(number)
        drawn[-1].add(room)
    assert [{"__main__"}, *drawn] == floors


def test_the_readme_has_a_line_for_every_command() -> None:
    names = set(re.findall(r"`bend ([a-z]+)", text_of(ROOT / "README.md")))
    stages = set(PipelineConfig.model_fields) & set(cli.commands) - {"seeds", "evaluation"}
    assert names >= set(cli.commands) - stages


@every_page
def test_no_sentence_is_long(page: Path) -> None:
    long = [each for each in prose.sentences(text_of(page)) if prose.words(each) > MOST_WORDS]
    assert long == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "One. Two is `a. b`.\n\n- Three\n- Four: 0.5 s\n",
            ["One.", "Two is Code.", "Three", "Four: 0.5 s"],
        ),
        (
            "# Heading\n\n| a. B | c |\n\n```\nCode. Block\n```\nGuo et al. Say.",
            ["Guo et al. Say."],
        ),
        (
            "A [link. Here](a.md#b) is\none. **Bold.** Last",
            ["A link.", "Here is one.", "Bold.", "Last"],
        ),
    ],
)
def test_sentences_are_those_of_running_text(text: str, expected: list[str]) -> None:
    assert prose.sentences(text) == expected


@every_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose.unfenced(text_of(page))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(there / "README.md" if there.is_dir() else there), target


@every_page
def test_commands_in_blocks_are_ones_that_bend_takes(page: Path) -> None:
    for words in commands(page):
        _, given = parsed(words)
        overrides = list(given.get("overrides", ()))  # type: ignore[call-overload]
        file = given.get("file")
        if file is not None and (ROOT / str(file)).exists():
            load_config(ROOT / str(file), overrides)
        elif overrides:
            load_config(None, overrides)


@every_page
def test_commands_in_lines_name_commands_and_options_that_there_are(page: Path) -> None:
    for words in (span.split() for span in spans(page) if span.startswith("bend ")):
        command: click.Command | None = cli
        for word in words[1:]:
            if isinstance(command, click.Group):
                command = command.get_command(click.Context(command), word)
                assert command is not None, " ".join(words)
            elif word.startswith("--") and word not in ("--", "--help"):
                assert command is not None
                assert word in options_of(command), " ".join(words)


@every_page
def test_options_in_lines_are_of_bend_or_of_a_script_of_ours(page: Path) -> None:
    for span in spans(page):
        if option := re.match(r"--[a-z-]+", span):
            assert option[0] in options_of(cli) or quoted(option[0]), span


@every_page
def test_scripts_in_blocks_take_the_options_they_are_given(page: Path) -> None:
    for line in shell_lines(page):
        script = re.search(r"python (\S+\.py)(.*)", line)
        if script is None:
            continue
        name = Path(script[1]).name
        (path,) = (each for each in (ROOT / "tests").rglob(name) if "support" not in each.parts)
        for option in re.findall(r"--[a-z-]+", script[2].partition("#")[0]):
            assert f'"{option}"' in text_of(path), line


@every_page
def test_settings_in_lines_are_ones_that_there_are(page: Path) -> None:
    for span in spans(page):
        if span.startswith("--set "):
            overrides = shlex.split(span)[1::2]
            assert valid_somewhere(overrides), span


@every_page
def test_knobs_in_lines_are_ones_that_there_are(page: Path) -> None:
    known = {knob.path for knob in knobs()}
    known |= {path.rpartition(".")[0] for path in known} | {f"{path}.kind" for path in known}
    known |= {f"{path.rpartition('.')[0]}.kind" for path in known}
    for span in spans(page):
        section = span.partition(".")[0]
        is_path = (
            re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span) and section in PipelineConfig.model_fields
        )
        assert not is_path or span in known, span


@every_page
def test_yaml_in_blocks_is_a_config_or_a_search(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(prose.blocks(text_of(page))):
        if block.language != "yaml":
            continue
        file = tmp_path / f"{number}.yaml"
        file.write_text(block.text, encoding="utf-8")
        keys = set(yaml.safe_load(block.text))
        if keys <= set(PipelineConfig.model_fields):
            load_config(file)
        elif keys <= set(TuneSection.model_fields):
            load_section(file, PipelineConfig(), None)
        else:
            assert keys == KUSTOMIZE, keys


@every_page
def test_paths_are_of_files_that_there_are(page: Path) -> None:
    tops = {each.name for each in ROOT.iterdir()}
    words = [*spans(page), *(word for line in shell_lines(page) for word in line.split())]
    for word in words:
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", word) and word.partition("/")[0] in tops:
            # What a command leaves, or takes of the user's.
            if not word.startswith(("bend-", "cluster/CLOUD")):
                assert (ROOT / word).exists(), word
        elif re.fullmatch(r"\w+\.py", word):
            assert (page.parent / word).exists() or list((ROOT / "tests").rglob(word)), word
