"""The stub describes the module that was built."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

import asepsis.errors
from asepsis import _native

STUB = ast.parse(Path(asepsis.errors.__file__).with_name("_native.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
LEDGER = next(node for node in STUB.body if isinstance(node, ast.ClassDef))
METHODS = {node.name: node for node in LEDGER.body if isinstance(node, ast.FunctionDef)}

Parameter = tuple[str, str, Any]


def written(node: ast.FunctionDef) -> list[Parameter]:
    """(name, kind, default) of a function of the stub, without self or cls."""
    required = [inspect.Parameter.empty] * (len(node.args.args) - len(node.args.defaults))
    defaults = [*required, *(ast.literal_eval(default) for default in node.args.defaults)]
    found = [(a.arg, "POSITIONAL_OR_KEYWORD", d) for a, d in zip(node.args.args, defaults, strict=True)]
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        found.append((argument.arg, "KEYWORD_ONLY", value))
    return [parameter for parameter in found if parameter[0] not in ("self", "cls")]


def built(function: Any) -> list[Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.name, p.default) for p in parameters if p.name != "self"]


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_stub_names_what_the_module_has():
    assert public(vars(_native)) == {*FUNCTIONS, LEDGER.name}
    assert public(vars(_native.Ledger)) == public(METHODS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_signature_of_the_stub(name):
    assert built(getattr(_native, name)) == written(FUNCTIONS[name])


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_the_signature_of_the_stub(name):
    if any(isinstance(d, ast.Name) and d.id == "property" for d in METHODS[name].decorator_list):
        assert inspect.isgetsetdescriptor(getattr(_native.Ledger, name))
    else:
        method = _native.Ledger if name == "__new__" else getattr(_native.Ledger, name)
        assert built(method) == written(METHODS[name])


@pytest.mark.parametrize(
    "name", sorted([*public(vars(_native)), *(f"Ledger.{name}" for name in public(METHODS))])
)
def test_everything_built_has_a_docstring(name):
    owner, _, member = name.partition(".")
    found = getattr(_native, owner)
    assert (getattr(found, member) if member else found).__doc__
