"""Full disks, folders that may not be written to, signals, clocks: the last good state is there, nothing half looks whole."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile.child import killed, listing, run
from hostile.faults import FULL, KILLED, SIGNALS, WRITERS, made

from asepsis.errors import AsepsisError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def things(sound):
    return made(sound)


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_leaves_what_was_there(name, things, tmp_path):
    write = WRITERS[name]
    target = tmp_path / "target"
    target.mkdir()
    write(things, target, 0)
    before = listing(target)
    sizes = sorted({len(content) for content in before.values()} | {1, 4096})
    met = 0
    for size in sizes:
        code, said = run(lambda size=size: write(things, target, 1), file_size=max(size - 1, 0))
        if code == 0:  # smaller than the limit: the other state is whole
            write(things, target, 0)
            continue
        met += 1
        assert re.match(r"[A-Za-z]+(Error|Inert): ", said), said
        assert re.search(r"too large|os error 27|space|Errno 27", said), said
        assert listing(target) == before, f"at {size}: {set(listing(target)) ^ set(before)}"
    assert met


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_may_not_be_written_to_is_left_alone(name, things, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    WRITERS[name](things, target, 0)
    before = listing(target)
    for folder in (target, *(p for p in target.rglob("*") if p.is_dir())):
        folder.chmod(0o555)
    code, said = run(lambda: WRITERS[name](things, target, 1), nobody=True)
    for folder in (target, *(p for p in target.rglob("*") if p.is_dir())):
        folder.chmod(0o755)
    assert code == 3
    assert re.search(r"[Pp]ermission denied|cannot be written|was not written", said), said
    assert listing(target) == before


@pytest.mark.parametrize("name", KILLED)
def test_a_kill_at_any_moment_leaves_one_whole_state(name, things, tmp_path):
    write, target = WRITERS[name], tmp_path / "target"
    states = []
    for state in (0, 1):
        (tmp_path / f"state-{state}").mkdir()
        write(things, tmp_path / f"state-{state}", state)
        states.append(listing(tmp_path / f"state-{state}"))
    assert states[0] != states[1]
    target.mkdir()
    write(things, target, 0)

    def forever() -> None:
        for state in range(10**9):
            write(things, target, (state + 1) % 2)

    chance = random.Random(name)
    for _ in range(20):
        code, said = killed(forever, after=chance.uniform(0.002, 0.08))
        assert code == -signal.SIGKILL, said
        # what readers look for: names with a dot in front are nobody's
        found = {
            k: v for k, v in listing(target).items() if not any(p.startswith(".") for p in Path(k).parts)
        }
        assert found in states, sorted(found)


def begun(argv: list[str], look: Callable[[], object]) -> int:
    """Run a command line; ``look`` is called when its work has begun, and again for every step of it."""
    from asepsis.cli import main

    @contextlib.contextmanager
    def shown():
        yield lambda name, done, of: look()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asepsis.cli._progress.shown", shown)
        return main(argv)


@pytest.fixture
def interruptible():
    """Ctrl-C as a terminal has it: a shell's background jobs are born with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_during_work_leaves_no_output_and_the_old_one_whole(name, by, sound, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [word.format(sound=sound, out=out) for word in SIGNALS[name].split()]
    assert begun(argv, lambda: None) in (0, 1, 2), capsys.readouterr().err
    before = listing(tmp_path)
    assert before
    capsys.readouterr()
    code = begun(argv, lambda: os.kill(os.getpid(), by))
    said = capsys.readouterr().err
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 130}[by], said
    assert {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[by] in said
    assert listing(tmp_path) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_kill_during_work_leaves_no_output_and_the_old_one_whole(name, sound, tmp_path):
    argv = [word.format(sound=sound, out=tmp_path / "out") for word in SIGNALS[name].split()]
    assert begun(argv, lambda: None) in (0, 1, 2)
    before = listing(tmp_path)
    # a process of its own: what torch has started does not survive a fork
    program = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from test_faults import begun\n"
        f"def look(): print('begun', flush=True); time.sleep(60)\n"
        f"sys.exit(begun({argv!r}, look))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert any("begun" in line for line in iter(process.stdout.readline, ""))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    # what nobody was left to remove begins with a dot, and nothing reads it
    assert {name: held for name, held in listing(tmp_path).items() if name[0] != "."} == before


def test_a_grid_that_is_terminated_keeps_its_cells_and_goes_on(sound, tmp_path, monkeypatch, capsys):
    from asepsis.cli import bench_defenses, main

    data = tmp_path / "data"
    data.mkdir()
    for name in ("rows.jsonl", "test.jsonl"):
        (data / name).write_text((sound / "rows.jsonl").read_text())
    (tmp_path / "grid.yaml").write_text(
        f"model: {sound}/model\ndata: {{train: rows.jsonl, dev: rows.jsonl, test: test.jsonl}}\nattacks: {{clean: {{}}}}\n"
        "defenses: {none: {}, clean-only: {}, lora: {}}\nseeds: [0]\nrows: 16\nclean_rows: 8\ntest_rows: 8\n"
        "settings: {max_steps: 1, device: cpu, precision: fp32, max_length: 16}\n"
    )
    out = tmp_path / "out"
    line = ["bench", "defenses", str(tmp_path / "grid.yaml"), "--data", str(data), "--output", str(out)]
    line += ["--table", str(tmp_path / "table.md")]
    cells = []

    def told(row, seconds):
        cells.append(row["defense"])
        if len(cells) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(bench_defenses, "_say", told)
    assert main(line) == 143
    assert not (tmp_path / "table.md").exists()
    before = {name: held for name, held in listing(out).items() if name.endswith(".json") and "/" not in name}
    assert len(before) == 2
    assert main(line) == 0
    assert cells == ["none", "clean-only", "lora"]
    assert before.items() <= listing(out).items()
    assert "3 of 3 cells were run" in (tmp_path / "table.md").read_text()


def test_a_guard_whose_fit_is_terminated_leaves_the_one_that_was_there(sound, tmp_path, monkeypatch, capsys):
    from asepsis.cli import main
    from asepsis.inference import guard

    line = f"guard fit {sound}/model --clean {sound}/rows.jsonl --detector confidence --target-fpr 0.2 --output {tmp_path}/out"
    assert main(line.split()) == 0
    before = listing(tmp_path)
    monkeypatch.setattr(guard, "threshold_for", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(line.split()) == 143
    assert "terminated; nothing unfinished was kept" in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_a_training_that_is_terminated_goes_on_from_its_checkpoint(sound, tmp_path, capsys):
    argv = SIGNALS["train"].format(sound=sound, out=tmp_path / "out").split()
    argv[argv.index("20")] = "6"
    assert begun([*argv[:-1], str(tmp_path / "whole")], lambda: None) == 0
    steps = []

    def step() -> None:
        steps.append(0)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    often = [*argv, "--checkpoint-every", "1"]
    assert begun(often, step) == 143
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.checkpoints").glob("state-*.safetensors"))
    assert begun([*often, "--resume"], lambda: None) == 0, capsys.readouterr().err
    assert not (tmp_path / "out.checkpoints").exists()
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == other


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(
            "a file system cannot be mounted here; limits on the size of files are tried all the same"
        )
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", FULL)
def test_a_disk_of_its_own_that_is_full_leaves_what_was_there(name, things, small_disk):
    filler = small_disk / "filler"
    with contextlib.suppress(AsepsisError, OSError):  # what fits is there, and nothing else
        WRITERS[name](things, small_disk, 0)
    before = listing(small_disk)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"a" * 4096)
    with pytest.raises((AsepsisError, OSError), match=r"No space left|os error 28|Errno 28"):
        WRITERS[name](things, small_disk, 1)
    filler.unlink()
    assert listing(small_disk) == before


def of_python() -> None:
    bytearray(1 << 60)


def of_torch() -> None:
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


def of_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("want", [of_python, of_torch, of_a_gpu], ids=lambda want: want.__name__)
@pytest.mark.parametrize("name", SIGNALS)
def test_memory_that_runs_out_during_work_leaves_no_output_and_is_said(name, want, sound, tmp_path, capsys):
    argv = [word.format(sound=sound, out=tmp_path / "out") for word in SIGNALS[name].split()]
    assert begun(argv, lambda: None) in (0, 1, 2)
    before = listing(tmp_path)
    capsys.readouterr()
    assert begun(argv, want) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "asepsis: error: there is not enough memory for this; what was not finished was not written"
    )
    assert listing(tmp_path) == before


def test_nothing_is_decided_by_the_clock_on_the_wall():
    """It is set back and forth while a job runs; what is timed goes by the monotonic one."""
    package = Path(__file__).parents[2] / "python" / "asepsis"
    asked = re.compile(r"\btime\.time\(|\bdatetime\b|\butcnow\b|\bst_mtime\b|from time import")
    sources = [*package.rglob("*.py"), *(package / "kernels").rglob("*.py")]
    assert len(sources) > 100
    assert not [p.name for p in sources if asked.search(p.read_text(encoding="utf-8"))]


def test_a_terminated_command_says_so(sound, tmp_path):
    from asepsis.cli._exit import ExitCode, translate

    def work() -> int:
        import sys

        sys.stderr = (tmp_path / "said").open("w")
        with translate(debug=False) as result:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        sys.stderr.flush()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        return int(result.code)

    code, said = run(work)
    assert code == ExitCode.TERMINATED, said
    assert (tmp_path / "said").read_text() == "asepsis: terminated; nothing unfinished was kept\n"


def test_where_folders_cannot_change_places_the_old_one_is_moved_aside(things, tmp_path, monkeypatch):
    from asepsis.core import folders

    write, target = WRITERS["a guard"], tmp_path / "target"
    target.mkdir()
    write(things, target, 0)
    before = listing(target)
    monkeypatch.setattr(folders, "_exchanged", lambda one, other: False)
    write(things, target, 1)
    assert listing(target) != before
    after = listing(target)
    replace = Path.replace

    def failing(self: Path, other: Path) -> Path:
        if self.name.startswith(".guard-"):
            raise OSError(28, "No space left on device")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(AsepsisError, match="No space left"):
        write(things, target, 0)
    assert listing(target) == after


def test_a_link_to_a_folder_stays_a_link(things, tmp_path):
    from asepsis.core.folders import whole_folder

    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link") as scratch:
        (scratch / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"


@pytest.mark.parametrize("moment", [0, 2**31 + 10, 4 * 10**9])
def test_a_clock_that_was_set_changes_no_verdict(moment, things, tmp_path):
    from asepsis.core.manifest import verify

    target = tmp_path / "target"
    target.mkdir()
    WRITERS["a run"](things, target, 0)
    for path in target.rglob("*"):
        os.utime(path, (moment, moment))
    assert verify(target / "run").verdict == "intact"


def test_a_ledger_goes_on_from_its_last_whole_snapshot(tmp_path):
    from asepsis.core.ledger import LossLedger

    path = tmp_path / "ledger.safetensors"
    ledger = LossLedger(1000)
    ledger.observe(np.arange(1000), np.zeros(1000, np.float32))
    ledger.end_epoch()
    ledger.save(path)
    ledger.observe(np.arange(1000), np.ones(1000, np.float32))
    ledger.end_epoch()
    code, said = run(lambda: ledger.save(path), file_size=2000)
    assert code == 3, said
    assert "LedgerError" in said
    found = LossLedger.load(path)
    assert found.n_columns == 1
    found.observe(np.arange(1000), np.ones(1000, np.float32))
    found.end_epoch()
    assert found.scores().tolist() == ledger.scores().tolist()
