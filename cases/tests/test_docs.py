"""The documentation is true: every block of code on every page is run, or where that takes minutes, parsed.

A page's blocks are run in order, in a folder of the page's own that holds a copy of ``examples`` and the runs of ``RUNS``:

    python    is executed, all blocks of a page in one namespace
    diff      is applied with ``git apply``
    console   each line after ``$`` is a command; lines below it are what it prints (``...`` stands for anything). A
              command of ``harness`` that ``RUN`` names is run and has to end with 0 unless ``echo $?`` follows; any other
              must parse: options, cases, profiles, environments of tox, extras, files. Linters and pytest are the only
              other programs.
    text      is shown and nothing else

A block of any other kind, or of none, is an error: nothing on a page is passed over.
"""

from __future__ import annotations

import doctest
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt

from cases import CASES
from cases.gptj import GPTJCase
from harness.check import check_property
from harness.cli.app import app, status
from harness.environment import fingerprint
from harness.faults.bank import find_faults
from harness.profiles import depth
from harness.properties import BY_NAME
from harness.registry import UnknownCase, choose
from harness.trial import Replacer
from policies import replace_module
from reports import record, storage

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
    "examples/README.md",
]
RUN = re.compile(
    r"harness (?:(?:list|new|report|compare|history|reproduce)\b|doctor(?!.*--timing)|(?:bench|faults) .*--list"
    r"|validate .*--profile quick .*--budget 0 --faults 0)"
)
"""Commands that are run. What else there is checks or times at length, installs, or starts another program."""
RUNS = "docs/verdicts.md", "docs/nightly.md"
"""Pages in whose folder lie ``runs/monday``, in which all held, and ``runs/tuesday``, in which one property failed."""


class Untrue(AssertionError):
    """A block that does not do what its page says."""


@dataclass(frozen=True)
class Block:
    """``line`` is where the text of the block begins on its page, counted from 1."""

    page: str
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command of a console block, and what is said to be its output."""

    line: int
    words: tuple[str, ...]
    output: str


def blocks(page: str, text: str) -> Iterator[Block]:
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            yield Block(page, token.map[0] + (2 if token.type == "fence" else 1), token.info.strip(), token.content)


def commands(block: Block) -> Iterator[Command]:
    lines = block.text.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("$ ")]
    if not starts or starts[0] != 0:
        raise Untrue("a console block begins with a command, after $")
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        output = "\n".join(lines[start + 1 : end]).strip("\n")
        parts = [part.strip() for part in lines[start][2:].split("&&")]
        for place, part in enumerate(parts):
            last = place == len(parts) - 1
            yield Command(block.line + start, tuple(shlex.split(part, comments=True)), output if last else "")


class Reader:
    """Follows a page in the current folder."""

    def __init__(self, printed: Callable[[], str], known: Callable[[str], object]) -> None:
        self.printed, self.known = printed, known
        self.names: dict[str, object] = {"__name__": "__page__"}
        self.status = 0

    def follow(self, block: Block) -> None:
        match block.kind:
            case "python":
                source = "\n" * (block.line - 1) + block.text
                exec(compile(source, block.page, "exec", dont_inherit=True), self.names)
            case "diff":
                done = subprocess.run(["git", "apply", "-"], input=block.text, text=True, capture_output=True, check=False)
                if done.returncode:
                    raise Untrue(done.stderr.strip())
            case "console":
                found = list(commands(block))
                for command, after in zip(found, [*found[1:], None], strict=True):
                    self.obey(command, asked=after is not None and after.words == ("echo", "$?"))
            case "text":
                pass
            case other:
                raise Untrue(f"nobody knows what to do with a block of kind {other!r}")

    def obey(self, command: Command, *, asked: bool) -> None:
        if command.words == ("echo", "$?"):
            self.expect(command, f"{self.status}\n")
        elif RUN.match(shlex.join(command.words)):
            self.printed()
            self.status = status(CASES, list(command.words[1:]))
            printed = self.printed()
            if self.status and not asked:
                raise Untrue(f"line {command.line}: ended with {self.status}:\n{printed}")
            if command.output:
                self.expect(command, printed)
        else:
            self.parse(command)

    @staticmethod
    def expect(command: Command, printed: str) -> None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not doctest.OutputChecker().check_output(f"{command.output}\n", printed, flags):
            raise Untrue(f"line {command.line}: prints\n{printed}\nand not\n{command.output}")

    def parse(self, command: Command) -> None:
        program, *arguments = command.words
        match program:
            case "harness":
                parse_harness(arguments)
            case "tox":
                parse_tox(arguments)
            case "pip":
                parse_pip(arguments)
            case "pytest":
                for one in arguments:
                    if one.startswith("-"):
                        self.known(one.partition("=")[0])
            case "ruff" | "mypy" | "lint-imports":
                pass
            case _:
                raise Untrue(f"line {command.line}: {program} is no program that a page may speak of")


def parse_harness(arguments: list[str]) -> None:
    """Raise unless the command, its options, its cases and its profile exist."""
    group = typer.main.get_command(app)
    top = group.make_context("harness", arguments, obj=CASES)
    name, command, rest = group.resolve_command(top, arguments)
    given = command.make_context(name, rest, parent=top).params
    choose(CASES, given.get("cases") or ())
    if given.get("profile") is not None:
        depth(given["profile"])


def environments() -> set[str]:
    """Names of the environments in tox.ini, those in braces one by one."""
    text = (ROOT / "tox.ini").read_text()
    found: set[str] = set()
    for name in re.findall(r"^\[testenv:(.+)\]$", text, re.MULTILINE):
        found.update(name.strip("{}").split(","))
    return found


def parse_tox(arguments: list[str]) -> None:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for flag, value in pairwise(own):
        if flag == "-e" and (unknown := set(value.split(",")) - environments()):
            raise Untrue(f"tox.ini has no environment {', '.join(unknown)}")


def parse_pip(arguments: list[str]) -> None:
    for flag, value in pairwise(arguments):
        if flag in ("-c", "-r") and not (ROOT / value).is_file():
            raise Untrue(f"there is no file {value}")
    extras = set(importlib.metadata.metadata("replace-policy-harness").get_all("Provides-Extra") or ())
    for one in arguments:
        if one.startswith(".[") and (unknown := set(one[2:-1].split(",")) - extras):
            raise Untrue(f"there is no extra {', '.join(unknown)}")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``monday`` and ``tuesday``: one property of GPT-J, first as it is, then with a seeded fault."""
    folder = tmp_path_factory.mktemp("runs")
    storage.write(one_verdict("monday", "2026-03-02T02:17:00+00:00", replace_module), folder / "monday")
    (fault,) = find_faults(("M10 style",))
    with fault.inject(replace_module) as faulty:
        storage.write(one_verdict("tuesday", "2026-03-03T02:17:00+00:00", faulty), folder / "tuesday")
    return folder


def one_verdict(name: str, created: str, replacer: Replacer) -> record.Run:
    equality = BY_NAME["layer equality"]
    checked = check_property(equality, GPTJCase(), profile=depth("quick"), seed=0, policy="HFGPTJLayerPolicy", replacer=replacer)
    return record.Run(
        id=name,
        created=created,
        command="harness check gptj",
        profile="quick",
        seed=0,
        complete=True,
        seconds=checked.verdict.seconds,
        environment=fingerprint(),
        verdicts=(checked.verdict,),
    )


@pytest.fixture
def reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> Reader:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # what a page writes it may import
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return Reader(lambda: capsys.readouterr().out, pytestconfig.getoption)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, reader: Reader, tmp_path: Path, two_runs: Path) -> None:
    """Its code runs, its commands exist, and what it says they print is what they print."""
    if page in RUNS:
        shutil.copytree(two_runs, tmp_path / "runs")
    for block in blocks(page, (ROOT / page).read_text()):
        try:
            reader.follow(block)
        except Exception as problem:
            reason = "".join(traceback.format_exception_only(problem))
            pytest.fail(f"{page}:{block.line}: {reason}")


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_of_a_page_exist(page: str) -> None:
    """Between the blocks too, where they stand with NAMES for what is left open."""
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text()):
        for inline in token.children or ():
            words = inline.content.replace("[", " ").replace("]", " ").split()
            if inline.type != "code_inline" or len(words) < 2:
                continue
            if words[0] == "harness":
                assert unknown_options(words[1], words[2:]) == [], inline.content
            elif words[0] == "tox":
                parse_tox(words[1:])


def unknown_options(name: str, words: list[str]) -> list[str]:
    """Options among ``words`` that the command of this name has not got. Raises ``KeyError`` where there is no command."""
    parameters = typer.main.get_command(app).commands[name].params
    known = {option for one in parameters for option in one.opts}
    return [word for word in words if word.startswith("--") and word not in known]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    """A link to a file of this project names one that is there."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_every_page_is_linked_from_the_readme() -> None:
    """The README is the entry to all of them."""
    text = (ROOT / "README.md").read_text()
    assert [page for page in PAGES[1:] if f"({page})" not in text] == []


NO_OPTION = typer.BadParameter.__mro__[1]
"""A usage error; typer has no public name for it."""
WRONG: dict[str, tuple[str, str, type[Exception], str]] = {
    "a block of no kind": ("", "x = 1", Untrue, "nobody knows what to do with a block of kind ''"),
    "code that raises": ("python", "1 / 0", ZeroDivisionError, "division by zero"),
    "an option that is not there": ("console", "$ harness run bert --deep", NO_OPTION, "No such option: --deep"),
    "a case that is not there": ("console", "$ harness run bret", UnknownCase, "no case is called 'bret'"),
    "a profile that is not there": ("console", "$ harness run bert --profile deep", KeyError, "deep"),
    "another output": ("console", "$ harness list bert\nroberta", Untrue, "and not\nroberta"),
    "a command that fails": ("console", "$ harness report nowhere", Untrue, "line 1: ended with 2"),
    "another exit status": ("console", "$ harness report nowhere\n$ echo $?\n1", Untrue, "line 2: prints\n2\n\nand not\n1"),
    "an environment that is not there": ("console", "$ tox -e imports", Untrue, "tox.ini has no environment imports"),
    "an extra that is not there": ("console", "$ pip install '.[tests]'", Untrue, "there is no extra tests"),
    "an option that pytest has not got": ("console", "$ pytest --deep", ValueError, "no option named '--deep'"),
    "another program": ("console", "$ rm page", Untrue, "rm is no program that a page may speak of"),
    "a change that does not apply": (
        "diff",
        "--- a/examples/mistral.py\n+++ b/examples/mistral.py\n@@ -1 +1 @@\n-x\n+y\n",
        Untrue,
        "patch does not apply",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_untrue_block_is_noticed(what: str, reader: Reader) -> None:
    """Each way in which a page can be wrong raises, and says what it is."""
    kind, text, problem, words = WRONG[what]
    with pytest.raises(problem, match=re.escape(words)):
        reader.follow(Block("page.md", 1, kind, text))


def test_an_option_that_a_command_has_not_got_is_found_in_the_text() -> None:
    """The check of the text can fail."""
    assert unknown_options("run", ["CASE", "--profile", "quick", "--deep"]) == ["--deep"]
