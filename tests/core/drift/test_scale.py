"""A scan holds rows' sums and words, never a matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[3] / "benches"

WRITE = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from scan_model import write
write(Path(sys.argv[2]) / "base", 128_000, 4096, trained=0)
write(Path(sys.argv[2]) / "tuned", 128_000, 4096, trained=32_000)
"""
SCAN = """
import json, sys; sys.path.insert(0, sys.argv[1])
from scan_model import Anonymous
import asepsis
with Anonymous() as memory:
    found = asepsis.scan_model(sys.argv[2] + "/tuned", base=sys.argv[2] + "/base")
print(json.dumps([memory.most, found.verdict, found.tokens[0].id, found.report["moved"]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read as on Linux")
def test_two_gigabytes_of_embeddings_are_scanned_within_half_a_gibibyte(tmp_path: Path) -> None:
    # files are written in a process of their own, so that what it held does not count
    for program in (WRITE, SCAN):
        done = subprocess.run(
            [sys.executable, "-c", program, str(BENCHES), str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    for file in tmp_path.rglob("*.safetensors"):
        assert file.stat().st_size > 1_048_000_000
        file.unlink()
    most, verdict, first, moved = json.loads(done.stdout.splitlines()[-1])
    assert (verdict, first, moved) == ("suspicious", 31_999, 32_000)
    assert most < 512
