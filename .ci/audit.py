"""Ask the databases of known vulnerabilities about what is locked and pinned, and say aloud what could not be asked.

A vulnerability fails. A tool that is not installed, or a database that cannot be reached, is said in one line that begins
with NOT CHECKED, and fails only under ``--strict``: a machine without network must still be able to run everything else.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# the tool, its command line, and how it is installed
AUDITS = [
    ("cargo-deny", ["cargo", "deny", "--all-features", "check"], "cargo install --locked cargo-deny"),
    ("cargo-audit", ["cargo", "audit", "--deny", "warnings"], "cargo install --locked cargo-audit"),
    (
        "pip-audit",
        ["pip-audit", "--requirement", ".ci/constraints.txt", "--no-deps", "--disable-pip"],
        "pip install pip-audit",
    ),
]
# what a tool says of what it found; an advisory may speak of networks as well, so this is looked for first
FOUND = re.compile(
    r"^error\[|vulnerabilit(y|ies) found|denied warnings? found|known vulnerabilit(y|ies)|^(advisories|bans|licenses|sources) FAILED",
    re.MULTILINE | re.IGNORECASE,
)
# and in which line it says that it could not ask: of the database, the index or the feed, never of a crate
UNREACHABLE = re.compile(
    r"(fail(ed|ure) to|could ?n[o']t|unable to) (fetch|open|load|connect|update|resolve|clone)"
    r"|Could not connect to|ConnectionError|Max retries exceeded|timed out|network is unreachable|error sending request",
    re.IGNORECASE,
)


def audited(tool: str, command: "list[str]", install: str) -> "tuple[str, str]":
    """Run one audit; return ``"ok"``, ``"found"`` or ``"not checked"``, and what to say about it."""
    if shutil.which(tool) is None:
        return "not checked", f"{tool} is not installed: {install}"
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired:
        return "not checked", f"{tool} did not end within ten minutes"
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        return "ok", f"{tool} found nothing"
    lines = [line.strip() for line in said.splitlines() if UNREACHABLE.search(line)]
    if lines and not FOUND.search(said):
        return "not checked", f"{tool} could not reach its database: {lines[0]}"
    return "found", f"{tool}:\n{said or f'it ended with {done.returncode} and said nothing'}"


def main(arguments: "list[str]") -> int:
    """Run every audit and return an exit code: 1 for a finding, and under ``--strict`` for one that was not checked."""
    answers = [audited(*audit) for audit in AUDITS]
    for state, text in answers:
        sys.stdout.write(f"audit: {'NOT CHECKED: ' if state == 'not checked' else ''}{text}\n")
    bad = {"found", "not checked"} if "--strict" in arguments else {"found"}
    return int(any(state in bad for state, _ in answers))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
