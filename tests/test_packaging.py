"""What a user installs holds what the tree holds: a link to kernels/ is left out of a wheel silently if nobody looks."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WHEELS = ROOT / ".ci" / "wheels.py"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="manylinux wheels are built on Linux")
NATIVE = re.compile(r"asepsis/_native\.[^/]*\b(so|pyd)$")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return done.stdout


def maturin(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "maturin", *arguments, PYO3_PYTHON=sys.executable)


def tracked() -> set[str]:
    """Files of the package in the tree, by the path they have once installed."""
    listed = run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", "kernels", "python"
    ).splitlines()
    real = [path for path in listed if not (ROOT / path).is_symlink() and (ROOT / path).exists()]
    return {re.sub("^kernels/", "asepsis/kernels/", path).removeprefix("python/") for path in real}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that is published: on Linux as `make wheel` builds it, linked against an old glibc."""
    out = tmp_path_factory.mktemp("wheel")
    if sys.platform == "linux":
        run(sys.executable, WHEELS, "--out", out, "--machine", platform.machine())
    else:
        maturin("build", "--release", "--locked", "--out", out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
    )
    return target


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    maturin("sdist", "--out", out)
    (built,) = out.glob("*.tar.gz")
    return built


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_holds_the_files_of_the_tree_and_one_library(wheel: Path) -> None:
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    libraries = [n for n in names if NATIVE.search(n)]
    assert len(libraries) == 1
    assert len(names) == len(set(names))
    assert set(names) - set(libraries) == tracked()
    assert {"asepsis/kernels/bottom_k.py", "asepsis/py.typed", "asepsis/_native.pyi"} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_is_small_and_fits_every_python_from_310(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name
    assert wheel.stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_carries_licence_command_and_version(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
    workspace = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', workspace, re.MULTILINE)
    assert version is not None
    assert info == f"asepsis-{version.group(1)}.dist-info"
    assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "asepsis=asepsis.cli:main" in archive.read(f"{info}/entry_points.txt").decode().replace(" ", "")


@LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_runs_on_linux_from_glibc_217_on(wheel: Path) -> None:
    assert re.search(r"\.?manylinux_2_17_\w+\.whl$", wheel.name)
    said = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    needed = [tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", said)]
    assert needed
    assert max(needed) <= (2, 17)
    assert 'platform tag: "manylinux_2_17_' in said  # any library it bundles or lacks would change that


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_says_which_crates_are_in_it(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if "/sboms/" in n]
    bill = json.loads(archive.read(name))
    listed = {(part["name"], part["version"]) for part in bill["components"]}
    lock = (ROOT / "Cargo.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r'name = "(.+)"\nversion = "(.+)"', lock))
    assert {"pyo3", "numpy", "asepsis-core"} <= {crate for crate, _ in listed}
    assert listed <= locked


@LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_native_tests_pass_from_the_wheel_in_a_fresh_environment(wheel: Path) -> None:
    said = run(
        sys.executable,
        ROOT / ".ci" / "try_wheel.py",
        wheel,
        *("--python", sys.executable, "--borrow", sysconfig.get_path("purelib")),
    )
    assert re.search(r"\d+ passed", said)
    assert said.endswith(": passed\n")


@LINUX
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_for_the_other_processor_is_built_or_its_absence_is_said(tmp_path: Path) -> None:
    (other,) = {"x86_64", "aarch64"} - {platform.machine()}
    command = [sys.executable, str(WHEELS), "--out", str(tmp_path), "--machine", other]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        assert f"rustup target add {other}-unknown-linux-gnu" in done.stderr
        assert not list(tmp_path.iterdir())
    else:
        (built,) = tmp_path.glob(f"*manylinux_2_17_{other}.whl")
        assert built.stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_lists_every_locked_crate_that_is_in_it(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (listing,) = [n for n in archive.namelist() if "/sboms/" in n]
    content = json.loads(archive.read(listing))
    assert content["bomFormat"] == "CycloneDX"
    named = {(part["name"], part["version"]) for part in content["components"]}
    lock = (ROOT / "Cargo.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r'^name = "(.+)"\nversion = "(.+)"$', lock, re.MULTILINE))
    assert named <= locked
    assert {"numpy", "pyo3"} <= {name for name, _ in named}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_wheel_is_whole_without_the_tree(installed: Path, tmp_path: Path) -> None:
    program = """
import json, asepsis, asepsis.kernels, asepsis._native, torch
print(json.dumps({
    "files": [asepsis.__file__, asepsis.kernels.__file__, asepsis._native.__file__],
    "lowest": asepsis.kernels.bottom_k(torch.tensor([2.0, 0.0, 1.0]), 2, backend="native").tolist(),
}))
"""
    said = json.loads(run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert all(Path(file).is_relative_to(installed) for file in said["files"])
    assert said["lowest"] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_installed_command_answers(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "bin" / "asepsis", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert re.fullmatch(r"asepsis \d+\.\d+\.\d+\n", said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_sdist_holds_each_kernel_once_as_a_real_file(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {m.name.split("/", 1)[1]: m for m in archive}
    kernels = {n for n in tracked() if n.startswith("asepsis/kernels/")}
    assert kernels == {
        n.removeprefix("python/") for n in members if "kernels/" in n and n.startswith("python/")
    }
    assert all(members[f"python/{name}"].isfile() for name in kernels)
    assert not [name for name in members if name.startswith("kernels/")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_built_from_the_sdist_holds_what_the_trees_wheel_holds(
    wheel: Path, sdist: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    command = (sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", tmp_path)
    run(*command, cwd=unpacked, PYO3_PYTHON=sys.executable, CARGO_TARGET_DIR=target)
    (built,) = tmp_path.glob("*.whl")
    if sys.platform == "linux" and "manylinux_2_17" not in built.name:
        refused = subprocess.run([sys.executable, WHEELS, "--check", built], capture_output=True, text=True)
        assert refused.returncode == 1  # this one is linked against this machine's glibc
        assert "glibc 2.17" in refused.stderr

    def content(path: Path) -> set[str]:
        return {n for n in zipfile.ZipFile(path).namelist() if ".dist-info/" not in n}

    assert content(built) == content(wheel)


def test_the_packaged_models_and_text_are_pinned_where_the_makefile_installs_them() -> None:
    from asepsis.data import packaged

    projects = {packages[0].project for packages in packaged._MODELS.values()} | {packaged._TEXT.project}
    pins = set((ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert projects <= pins
    sources = (ROOT / "Makefile").read_text(encoding="utf-8") + (ROOT / "pyproject.toml").read_text(
        encoding="utf-8"
    )
    assert not [project for project in projects if project.split("==")[0] not in sources]


def test_every_python_dependency_is_pinned_for_ci() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert wanted is not None
    pins = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").lower()
    names = re.findall(r'"([A-Za-z0-9_-]+)', wanted.group(1))
    assert names
    assert not [name for name in names if f"\n{name.lower()}==" not in pins]


def test_a_python_that_was_asked_for_and_is_not_here_is_an_error_that_names_it(tmp_path: Path) -> None:
    script = ROOT / ".ci" / "try_wheel.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "no.whl", "--python", "3.99"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "Python 3.99: FAILED: not on this machine\n"


def test_a_release_is_tried_on_every_python_and_published_without_a_password() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["try"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert {"build", "try", "sdist"} == set(jobs["publish"]["needs"])
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    assert "secrets." not in text
    # what the jobs run is in the tree
    for script in re.findall(r"python (\.ci/\S+\.py)", text):
        assert (ROOT / script).is_file()


def test_a_wheel_that_is_too_large_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "asepsis-0-cp310-abi3-manylinux_2_17_x86_64.whl"
    large.write_bytes(bytes(2_000_000))
    done = subprocess.run(
        [sys.executable, WHEELS, "--check", large], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "2,000,000 bytes, wanted under" in done.stderr
