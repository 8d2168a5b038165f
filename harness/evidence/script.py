"""The script that shows a failure by itself: torch, the model library, ``policies``, and nothing of the harness.

Where it can, it is written out: the configuration's and the model's constructor with their arguments, the inputs as
literals, the rule for the weights, the comparison. Where a model has no such form, or the failure is not one of a
single call, the property and the case are carried along in their own source. Either way the text is run once before it
is kept: a script that does not show the failure is not evidence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

from policies import replace_module
from policies.plans import Plan

from ..case import Case, Example
from ..exact import exact_mode
from ..numerics import EXACT_TOLERANCE
from ..placed import kind_of
from ..plans import ByPlan
from ..properties import Property
from ..rounding.calibration import multiple
from ..rounding.statistic import DTYPES
from ..trial import Replacer, Trial
from .bundle import Bundle
from .constructed import construction
from .literals import CannotWriteError, literal
from .sources import ROOMS

FAILS = 1
"""Exit status of a script that shows its failure."""

_HEAD = '''"""{title}

{words}

Needs torch, {library} and the package "policies". Exit status 1 and one line: the failure shows; 0: it does not.

    python SCRIPT               with POLICY below: a file's, or where it is empty the policies of the package
    python SCRIPT FILE[:NAME]   with FILE's replace_module, or with its policy class NAME
"""

from __future__ import annotations

'''

_NO_POLICY = 'POLICY = ""'
_REPLACER = f'''{_NO_POLICY}
"""FILE[:NAME] of what is replaced with, as on the command line."""


def chosen_replacer():
    """``replace_module`` of the package, or what ``POLICY`` or the command line names instead."""
    from policies import replace_module

    chosen = sys.argv[1] if len(sys.argv) > 1 else POLICY
    if not chosen:
        return replace_module
    file, _, name = chosen.rpartition(":")
    if not (file and name.isidentifier()):  # a colon in a folder's name is no separator
        file, name = chosen, ""
    found, wanted = runpy.run_path(file) if os.path.isfile(file) else {{}}, name or "replace_module"
    if wanted not in found:
        print(f"{{file}} is not there, or has no {{wanted}}; FILE:NAME names a policy in it", file=sys.stderr)
        sys.exit(2)
    return functools.partial(replace_module, policies=[found[name]]) if name else found["replace_module"]
'''

_QUIET = """warnings.simplefilter("ignore")
logging.getLogger("{library}").setLevel(logging.ERROR)
"""

_END_BY_PLAN = """if __name__ == "__main__":
    with {by_plan}({plan!r}, {device!r}) as by_that_plan:
        sys.exit(main(None if sys.argv[1:] else by_that_plan))
"""

_END = """if __name__ == "__main__":
    sys.exit(main())
"""

_COMPARE = '''TOLERANCE = {tolerance!r}  # two float64 computations of one function agree to about 1e-15
EXPECTED_LAYERS = {expected!r}


def main(replace=None) -> int:
    """Compare the replaced model with the original, in float64."""
    with exact_mode():
        original = build().double()
        replaced = copy.deepcopy(original)
        expected = run(original, inputs())
        try:
            count = len((replace or chosen_replacer())(replaced).replaced)
            if count != EXPECTED_LAYERS:
                print(f"{{count}} of {{EXPECTED_LAYERS}} layers were replaced")
                return 1
            actual = run(replaced, inputs())
        except Exception as problem:
            print(f"the replaced model raised {{type(problem).__name__}}: {{problem}}")
            return 1
        for name, tensor in expected.items():
            error = difference(tensor, actual[name])
            if not error <= TOLERANCE:
                print(f"{{name}} differs: relative error {{error:.1e}}, tolerance {{TOLERANCE:.0e}}")
                return 1
    print("the replaced model agrees with the original")
    return 0


def difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Largest difference over the largest value, at positions that count."""
    if expected.shape != actual.shape:
        return float("inf")
    if VALID is not None and expected.dim() > 1:
        expected, actual = expected[VALID], actual[VALID]
    return float((expected - actual).abs().max() / expected.abs().max())
'''

_JUDGE = '''EXAMPLE = {example}


def main(replace=None) -> int:
    """Judge the property on the example."""
    case = {case}
    trial = {trial}(case, EXAMPLE, replace or chosen_replacer(), dtype={prop}.dtype)
    try:
        with case.surroundings(), trial.mode():
            {prop}.check(trial)
    except ({vacuous}, {original_failed}) as nothing:
        print(f"nothing can be shown here: {{nothing}}")
        return 2
    except NameError:  # what this file lacks shows nothing
        raise
    except Exception as problem:
        print(str(problem).splitlines()[0] if str(problem) else type(problem).__name__)
        return 1
    print("the property holds")
    return 0
'''


def script(prop: Property, case: Case, example: Example, replacer: Replacer) -> str:
    """A script that fails with ``replacer``. Raises ``CannotWriteError`` where none could be written."""
    reasons = []
    plan = replacer.plan if isinstance(replacer, ByPlan) else Plan.AUTO.value
    for write in (_written_out, _carried_along):
        try:
            text = write(prop, case, example, plan)
        except CannotWriteError as reason:
            reasons.append(str(reason))
            continue
        status, said = run_here(text, replacer)
        if status == FAILS:
            return text
        reasons.append(f"the script ended with {status} ({said})")
    raise CannotWriteError("; ".join(reasons))


def with_policy(text: str, file: str, name: str) -> str:
    """A script's text that by itself judges the policy class ``name`` in ``file``."""
    return text.replace(_NO_POLICY, f"POLICY = {f'{file}:{name}'!r}")


def run_here(text: str, replacer: Replacer) -> tuple[int, str]:
    """Run a script in this process with ``replacer``: its exit status and what it said."""
    heard = io.StringIO()
    with _module("failure_script") as module, contextlib.redirect_stdout(heard):
        try:
            exec(compile(text, "failure_script.py", "exec"), module.__dict__)
            status = int(module.main(replacer))
        except Exception as problem:
            return -1, f"{type(problem).__name__}: {problem}"
    return status, heard.getvalue().strip()


@contextlib.contextmanager
def _module(name: str) -> Iterator[Any]:
    """A module that is known by ``name`` for as long as the context is open: dataclasses look theirs up."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]


def _written_out(prop: Property, case: Case, example: Example, plan: str) -> str:
    """A script of one call of the model, with nothing in it but what this example needs."""
    if not prop.exact:
        raise CannotWriteError("not a question of one call in float64")
    if case.device != "cpu":
        raise CannotWriteError(f"not a question of one call on a CPU, but on {case.device}")
    with case.surroundings(), exact_mode():
        body, imports = construction(case, example)
        inputs = Trial(case, example, replace_module).fresh_inputs()
    bundle = Bundle()
    bundle.imports |= {*imports, "import copy", "import functools", "import logging", "import os", "import runpy", "import sys"}
    bundle.imports |= {"import warnings", "import torch"}
    bundle.add("harness.randomise", "randomise")
    bundle.add("harness.exact", "exact_mode")
    run = bundle.function_of(type(case), "run").replace("inputs.kwargs", "inputs")
    build = f"def build():\n{body}    return randomise(model, seed={example.seed})"
    given = f"def inputs():\n    return {literal(inputs.kwargs, '    ')}"
    valid = f"VALID = {literal(inputs.valid)}  # positions whose outputs are defined; None: all"
    end = _end(bundle, plan, case.device)
    imported, definitions = bundle.text()
    library = type(case.build(example)).__module__.partition(".")[0]
    parts = [
        imported,
        _QUIET.format(library=library),
        *(build, given, valid, run),
        _COMPARE.format(tolerance=EXACT_TOLERANCE, expected=case.expected(example)),
        *(_REPLACER, definitions, end),
    ]
    return _head(prop, case, example, library) + "\n\n\n".join(part.rstrip() for part in parts) + "\n"


def _carried_along(prop: Property, case: Case, example: Example, plan: str) -> str:
    """A script that holds the source of the property and of the case."""
    bundle = Bundle({("harness.rounding.calibration", "multiple"): _multiples()} if prop.lower is not None else None)
    bundle.imports |= {"import functools", "import logging", "import os", "import runpy", "import sys", "import torch"}
    bundle.imports |= {"import warnings"}
    kind = kind_of(case)
    made = f"{bundle.add(kind.__module__, kind.__name__)}({', '.join(_told(bundle, one) for one in case.made_with)})"
    if case.axes != kind(*case.made_with).axes:  # what a policy refuses is drawn by no property of its script either
        made = f"{made}.changed(axes={_told(bundle, case.axes)})"
    if case.device != kind.device:
        made = f"{bundle.add('harness.placed', 'placed')}({made}, {case.device!r})"
    names = {
        "prop": _in_bundle(bundle, prop),
        "case": made,
        "trial": bundle.add("harness.trial", "Trial"),
        "vacuous": bundle.add("harness.trial", "Vacuous"),
        "original_failed": bundle.add("harness.trial", "OriginalFailed"),
    }
    described = f"{bundle.add('harness.case', 'Example')}({literal(dict(example.values))}, {example.seed})"
    end = _end(bundle, plan, case.device)
    imported, definitions = bundle.text()
    library = type(case.build(example)).__module__.partition(".")[0]
    library = library if library not in ROOMS else case.name
    parts = [imported, _QUIET.format(library=library), definitions]
    parts += [_JUDGE.format(example=described, **names), _REPLACER, end]
    return _head(prop, case, example, library) + "\n\n\n".join(part.rstrip() for part in parts) + "\n"


def _told(bundle: Bundle, data: Any) -> str:
    """An expression that is ``data``, dataclasses, in the bundle."""
    for kind in _dataclasses_in(data):
        bundle.add(kind.__module__, kind.__name__)
    return repr(data)


def _dataclasses_in(value: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(value):
        yield type(value)
        value = tuple(getattr(value, one.name) for one in dataclasses.fields(value))
    if isinstance(value, dict):
        value = tuple(value.values())
    for one in value if isinstance(value, tuple) else ():
        yield from _dataclasses_in(one)


def _end(bundle: Bundle, plan: str, device: str) -> str:
    """What a script does when it is run by itself."""
    if plan == Plan.AUTO.value:
        return _END
    return _END_BY_PLAN.format(by_plan=bundle.add("harness.plans", "by_plan"), plan=plan, device=device)


def _head(prop: Property, case: Case, example: Example, library: str) -> str:
    off = [axis for axis in case.axes if example[axis.name] != axis.simplest]
    words = [f"    {axis.name} = {example[axis.name]}" for axis in off] or ["    every axis at its simplest value"]
    title = f'{case.title}, property "{prop.name}": a replaced model that fails.'
    return _HEAD.format(title=title, words="\n".join(words), library=library)


def _multiples() -> str:
    found = {dtype: multiple(dtype) for dtype in DTYPES}
    return f'def multiple(dtype):\n    """The calibrated multiple."""\n    return {found!r}[dtype]'


def _in_bundle(bundle: Bundle, prop: Property) -> str:
    """An expression that is ``prop`` in the bundle."""
    for name, module in list(sys.modules.items()):
        if name.startswith(tuple(f"{room}." for room in ROOMS)):
            for variable, value in list(vars(module).items()):
                if value is prop:
                    return bundle.add(name, variable)
                if isinstance(value, tuple) and name.startswith("harness.properties.") and prop in value:
                    return f"{bundle.add(name, variable)}[{value.index(prop)}]"
    raise CannotWriteError(f"the property {prop.name!r} stands in no module")
