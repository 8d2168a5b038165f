"""A failure's script shows it by itself, and by the plan that it was found by."""

from __future__ import annotations

import builtins
import os
import runpy
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import policies
from cases import CASES
from harness.evidence.bundle import Bundle
from harness.evidence.literals import CannotWriteError, literal
from harness.evidence.script import _in_bundle, _module, _multiples, run_here, script
from harness.placed import kind_of
from harness.plans import by_plan
from harness.properties import BY_NAME, PROPERTIES
from harness.search import quiet
from policies import replace_module

from .mutants import case_named, failure_of, misread, mutant

ROOT = Path(__file__).parents[2]
MODEL_EQUALITY = BY_NAME["model equality"]

FAULTY_POLICY = """
import dataclasses
from policies import replace_module as honest
from policies.gpt2 import HFGPT2LayerPolicy
from policies.llama import LlamaLayerPolicy


class DoubledScale(HFGPT2LayerPolicy):
    @classmethod
    def read(cls, layer):
        anatomy = HFGPT2LayerPolicy.read.__func__(cls, layer)
        attention = dataclasses.replace(anatomy.attention, scale=2.0 * anatomy.attention.scale)
        return dataclasses.replace(anatomy, attention=attention)


def replace_module(model):
    return honest(model, [DoubledScale])
"""


@pytest.mark.parametrize(
    ("name", "fault", "prop", "longest"),
    [
        ("gpt2", "attention scale", "model equality", 200),
        ("bert", "activation", "layer equality", 200),
        ("opt", "norm bias dropped", "cache", 200),
        ("llama", "attention output bias dropped", "contract", 1400),
        ("megatron", "norms swapped", "model equality", 1400),
    ],
)
def test_a_script_imports_nothing_of_the_harness_and_fails_with_the_fault_only(
    name: str, fault: str, prop: str, longest: int
) -> None:
    entry = next(entry for entry in CASES if entry.name == name)
    if entry.unavailable:
        pytest.skip(entry.unavailable)
    text = failure_of(entry.load(), mutant(fault), prop).script
    assert text is not None and len(text.splitlines()) < longest
    imports = [line.split()[1].partition(".")[0] for line in text.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert not {"harness", "cases", "reports"} & set(imports) and "torch" in imports
    assert run_here(text, replace_module)[0] == 0
    with misread(mutant(fault).edit):
        assert run_here(text, replace_module)[0] == 1


@pytest.mark.parametrize("prop", ["model equality", "cache"])
def test_a_script_run_by_itself_fails_with_a_faulty_policy_and_passes_with_the_honest_one(prop: str, tmp_path: Path) -> None:
    case = case_named("gpt2")
    policy = tmp_path / "faulty.py"
    policy.write_text(FAULTY_POLICY)
    space: dict[str, object] = {}
    exec(FAULTY_POLICY, space)
    example = case.simplest
    with quiet():
        text = script(BY_NAME[prop], case, example, space["replace_module"])  # type: ignore[arg-type]
    file = tmp_path / "failure.py"
    file.write_text(text)
    assert run(file, f"{policy}:DoubledScale" if prop == "cache" else policy) == (1, 1)
    assert run(file) == (0, 1)
    assert run(file, f"{policy}:Nobody") == run(file, tmp_path / "nowhere.py") == (2, 0)


def test_a_script_run_by_itself_replaces_by_the_plan_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, file, plans = case_named("gpt2"), tmp_path / "failure.py", []

    def replacing(model: Any, *args: Any, **kwargs: Any) -> Any:
        plans.append(kwargs)
        return replace_module(model, *args, **kwargs)

    for prop in ("model equality", "cache"):
        with quiet(), misread(mutant("attention scale").edit), by_plan("graphed") as replacer:
            file.write_text(script(BY_NAME[prop], case, case.simplest, replacer))
        with monkeypatch.context() as patched:
            patched.setattr(policies, "replace_module", replacing)
            patched.setattr(sys, "argv", [str(file)])
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(file), run_name="__main__")
        assert (end.value.code, plans.pop()) == (0, {"plan": "graphed"})


def run(file: Path, *arguments: object) -> tuple[int, int]:
    """Exit status and number of lines said."""
    done = subprocess.run(
        [sys.executable, str(file), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=file.parent,
    )
    return done.returncode, len(done.stdout.splitlines())


def test_no_script_is_kept_that_does_not_show_the_failure() -> None:
    case = case_named("gpt2")
    with quiet(), pytest.raises(CannotWriteError, match="ended with 0"):
        script(MODEL_EQUALITY, case, case.simplest, replace_module)


def test_no_script_is_kept_that_lacks_something_of_its_own() -> None:
    def unheard_of(model: Any) -> Any:
        return a_name_that_nobody_has  # type: ignore[name-defined]  # noqa: F821

    case = case_named("gpt2")
    with quiet(), pytest.raises(CannotWriteError, match="NameError: name 'a_name_that_nobody_has' is not defined"):
        script(BY_NAME["contract"], case, case.simplest, unheard_of)


def test_whatever_a_property_or_a_case_names_is_carried_along() -> None:
    """A name that is missing shows only when it is used, and then there is no script."""
    bundle = Bundle({("harness.rounding.calibration", "multiple"): _multiples()})
    for prop in PROPERTIES:
        _in_bundle(bundle, prop)
    for kind in [kind_of(entry.load()) for entry in CASES if entry.unavailable is None]:
        bundle.add(kind.__module__, kind.__name__)
    text = "from __future__ import annotations\n{}\n{}".format(*bundle.text())
    with _module("carried_along") as module:
        exec(compile(text, "carried_along.py", "exec"), module.__dict__)
        named = set(_globals_in(symtable.symtable(text, "carried_along.py", "exec")))
        assert len(named) > 500
        assert not named - vars(module).keys() - vars(builtins).keys()


def _globals_in(table: symtable.SymbolTable) -> Iterator[str]:
    """Names that functions look up outside themselves."""
    yield from (one.get_name() for one in table.get_symbols() if one.is_global() and one.is_referenced())
    for inner in table.get_children():
        yield from _globals_in(inner)


def test_a_name_that_two_modules_have_for_different_things_is_told_apart_in_a_script() -> None:
    bundle = Bundle()
    called = [bundle.add(module, "MASK") for module in ("harness.hf.inputs", "harness.properties.forms")]
    imports, definitions = bundle.text()
    space: dict[str, Any] = {}
    exec(f"from __future__ import annotations\n{imports}\n{definitions}", space)
    assert [type(space[name]).__name__ for name in called] == ["Axis", "str"]


def test_values_are_written_as_source_that_gives_them_back() -> None:
    value = {
        "ids": torch.arange(70).reshape(2, 35),
        "mask": torch.tensor([[-1.5, 0.25]]),
        "more": (1, [None, "a"], True),
    }
    again = eval(literal(value), {"torch": torch})  # the text is this test's own
    assert torch.equal(again["ids"], value["ids"]) and torch.equal(again["mask"], value["mask"])
    assert again["mask"].dtype is torch.float32 and again["more"] == value["more"]
    assert max(map(len, literal(value).splitlines())) <= 110


@given(st.floats(width=32))
def test_every_number_is_written_as_source_that_gives_it_back_alone_or_in_a_tensor(number: float) -> None:
    expected = torch.tensor([number])
    torch.testing.assert_close(torch.tensor([eval(literal(number))]), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(eval(literal(expected), {"torch": torch}), expected, rtol=0, atol=0, equal_nan=True)


def test_a_value_without_a_form_as_source_is_refused_by_name() -> None:
    with pytest.raises(CannotWriteError, match="a object has no form as source"):
        literal(object())
    with pytest.raises(CannotWriteError, match="a tensor of 5000 elements is too long"):
        literal(torch.zeros(5000))
