"""The shape of the tree: imports go down, the answer key stays upstairs, importing does nothing."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# lowest first; a file imports from its own layer or a lower one. `data` sits beside `core`.
LAYERS = (
    {"errors", "_native"},
    {"kernels"},
    {"core", "data"},
    {"defenses"},
    {"training"},
    {"inference"},
    {"evaluation"},
    {"cli", "integrations", "testing"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
EVALUATION = RANK["evaluation"]


def package_files() -> dict[str, Path]:
    """Dotted module name to file, for everything that imports as asepsis."""
    found = {}
    for start, prefix in ((ROOT / "python" / "asepsis", "asepsis"), (ROOT / "kernels", "asepsis.kernels")):
        for path in sorted(start.rglob("*.py")):
            if path.is_relative_to(ROOT / "python" / "asepsis" / "kernels"):
                continue  # the link; newer Pythons walk into it
            parts = path.relative_to(start).with_suffix("").parts
            found[".".join([prefix, *(p for p in parts if p != "__init__")])] = path
    return found


MODULES = package_files()


def layer(module: str) -> int:
    """The rank of a module's layer; the package itself is the door, above everything."""
    parts = module.split(".")
    return len(LAYERS) if len(parts) == 1 else RANK[parts[1]]


def imports(tree: ast.Module, module: str, *, is_package: bool = False) -> Iterator[tuple[str, int]]:
    """Every module of ours that this one imports, at the top, in a function or for its types, with the line."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            inside = [f"{start}.{alias.name}" for alias in node.names]
            # `from asepsis import kernels` imports asepsis.kernels, `from asepsis import defend` the door;
            # the version is the Rust core's
            lower = {"asepsis.__version__", "asepsis._native"}
            names = ["asepsis._native" if n in lower else n if n in MODULES else start for n in inside]
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func) and node.args:
            first = node.args[0]
            names = [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "asepsis")


def upward(source: str, module: str, *, is_package: bool = False) -> list[str]:
    return [
        f"{module}:{line} imports {name}"
        for name, line in imports(ast.parse(source), module, is_package=is_package)
        if layer(name) > layer(module)
    ]


def test_every_module_has_a_layer() -> None:
    strangers = [m for m in MODULES if m != "asepsis" and m.split(".")[1] not in RANK]
    assert not strangers, f"give these a layer in tests/test_house.py: {strangers}"


def test_imports_go_down_only() -> None:
    found = [
        line
        for module, path in MODULES.items()
        for line in upward(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert not found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("asepsis.core.losses", "from asepsis.training.loop import steer"),
        ("asepsis.core.losses", "def f():\n    import asepsis.evaluation.metrics"),
        ("asepsis.core.losses", "from ..defenses import abl"),
        ("asepsis.core.losses", "from asepsis import defenses"),
        ("asepsis.defenses.abl", "from asepsis import defend"),
        ("asepsis.data.readers", "if TYPE_CHECKING:\n    from asepsis.training import Run"),
        ("asepsis.kernels.bottom_k", "importlib.import_module('asepsis.core.ledger')"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, source: str) -> None:
    assert upward(source, module)


@pytest.mark.parametrize(
    "source",
    ["from asepsis.data import Data", "from . import phases", "from asepsis import _native", "import torch"],
)
def test_an_import_of_the_same_or_a_lower_layer_is_allowed(source: str) -> None:
    assert not upward(source, "asepsis.core.losses")


def test_the_answer_key_is_not_named_below_evaluation() -> None:
    key = re.compile(r"\bPoisonKey\b|\basepsis\.evaluation\b")
    below = {m: p for m, p in MODULES.items() if layer(m) < EVALUATION}
    assert len(below) > 10
    assert not [m for m, path in below.items() if key.search(path.read_text(encoding="utf-8"))]
    assert any(key.search(path.read_text(encoding="utf-8")) for m, path in MODULES.items() if m not in below)


def top_level(tree: ast.Module) -> Iterator[str]:
    """Names of the modules imported when this one is, TYPE_CHECKING blocks left out."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, (ast.If, ast.Try, ast.With)) and "TYPE_CHECKING" not in ast.dump(node):
            pending.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


@pytest.mark.parametrize(
    ("layers", "heavy"),
    [
        (
            {"errors", "data", "cli"},
            {"torch", "transformers", "peft", "datasets", "pyarrow", "triton", "matplotlib"},
        ),
        (
            {"kernels", "core", "defenses"},
            {"transformers", "peft", "datasets", "pyarrow", "triton", "matplotlib"},
        ),
        ({"training", "inference", "evaluation", "testing"}, {"triton", "matplotlib", "trl"}),
    ],
)
def test_heavy_packages_are_imported_where_they_are_used(layers: set[str], heavy: set[str]) -> None:
    found = [
        f"{module} imports {name} at its top"
        for module, path in MODULES.items()
        if module != "asepsis" and module.split(".")[1] in layers and "._triton" not in module
        for name in top_level(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] in heavy
    ]
    assert not found


def fresh(program: str) -> dict[str, object]:
    """Run a program in a new interpreter and return the JSON it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("module", ["asepsis", "asepsis.cli", "asepsis.errors"])
def test_importing_loads_nothing_heavy_and_touches_nothing(module: str) -> None:
    answer = fresh(f"""
import json, logging, os, sys, warnings
before = dict(os.environ), list(logging.root.handlers), list(warnings.filters), sys.excepthook
import {module}
after = dict(os.environ), list(logging.root.handlers), list(warnings.filters), sys.excepthook
print(json.dumps({{"same": before == after, "loaded": sorted({{m.split(".")[0] for m in sys.modules}})}}))
""")
    assert answer["same"]
    loaded = answer["loaded"]
    assert isinstance(loaded, list)
    assert not {"torch", "transformers", "triton", "peft", "datasets", "pandas", "pyarrow", "numpy"} & set(
        loaded
    )


def test_every_module_imports_and_leaves_the_process_as_it_was() -> None:
    # what torch and transformers do to the process on import is theirs, so they come before the first look
    answer = fresh(f"""
import importlib, json, logging, os, sys
import torch, transformers, peft, datasets
def look():
    return dict(os.environ), list(logging.root.handlers), torch.get_num_threads(), torch.get_default_dtype(), \\
        torch.is_grad_enabled(), torch.get_rng_state().tolist(), sys.excepthook
before, failed = look(), {{}}
for name in {sorted(MODULES)!r}:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps({{"same": before == look(), "failed": failed}}))
""")
    assert answer == {"same": True, "failed": {}}


@pytest.mark.skipif(sys.platform == "win32", reason="processor time of children is read as on Unix")
def test_help_answers_in_half_a_second() -> None:
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "asepsis.cli", "--help"], capture_output=True, check=True)
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(spent) < 0.5


def forbidden(source: str) -> list[str]:
    """What could run code that came with somebody's data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"{n} at {node.lineno}" for n in names if n.split(".")[0] in UNPICKLERS]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in {"eval", "exec", "torch.load", "os.system"}:
                found.append(f"{call} at {node.lineno}")
            for keyword in node.keywords:
                value = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in {"trust_remote_code", "allow_pickle"} and not value:
                    found.append(f"{keyword.arg} at {node.lineno}")
    return found


UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_nothing_unpickles_or_runs_text() -> None:
    sources = [*MODULES.values(), *(p for d in ("benches", "examples") for p in (ROOT / d).rglob("*.py"))]
    found = {str(p.relative_to(ROOT)): forbidden(p.read_text(encoding="utf-8")) for p in sources}
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=True)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_a_planted_way_to_run_foreign_code_is_found(source: str) -> None:
    assert forbidden(source)
    assert not forbidden("model.eval(); AutoModel.from_pretrained(name, trust_remote_code=False)")


def test_only_the_command_writes_to_the_environment() -> None:
    write = re.compile(r"os\.environ(\[[^]]+\]\s*=[^=]|\.(setdefault|update|pop)\()|os\.(putenv|unsetenv)\(")
    assert write.search('os.environ["X"] = "1"')
    assert not write.search('os.environ["X"] == "1"')
    library = {m: p for m, p in MODULES.items() if not m.startswith("asepsis.cli")}
    assert not [m for m, path in library.items() if write.search(path.read_text(encoding="utf-8"))]


def test_no_file_has_outgrown_its_one_job() -> None:
    files = [
        *MODULES.values(),
        *(p for d in ("tests", "benches", "examples") for p in (ROOT / d).rglob("*.py")),
    ]
    files += (ROOT / "rust").rglob("*.rs")
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert not {path: n for path, n in lengths.items() if n > 400}


def test_every_defense_has_a_section_in_the_papers() -> None:
    from asepsis.defenses import available

    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    headings = [re.sub(r"[^a-z]", "", line.lower()) for line in text.splitlines() if line.startswith("## ")]
    assert available()
    assert not [name for name in available() if not any(name in heading for heading in headings)]


def test_spelling_is_american() -> None:
    british = re.compile("defen" + "ce", re.IGNORECASE)
    files = [*MODULES.values(), *(ROOT / "rust").rglob("*.rs"), *ROOT.glob("*.md"), ROOT / "Makefile"]
    files += (p for d in ("tests", "benches", "examples") for p in (ROOT / d).rglob("*.py"))
    assert not [str(p.relative_to(ROOT)) for p in files if british.search(p.read_text(encoding="utf-8"))]
