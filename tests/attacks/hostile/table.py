"""The table of ``docs/reliability.md``, made from the registries that the tests are made from."""

from __future__ import annotations

from dataclasses import dataclass

from hostile import Corpus
from hostile.adapters import ADAPTERS
from hostile.faults import FULL, KILLED, SIGNALS, WRITERS
from hostile.folders import CONFIGS, INDEXES, PICKLES
from hostile.grids import CELLS, GRIDS
from hostile.guards import GUARDS, LEDGERS, MANIFESTS
from hostile.numbers import NUMBERS
from hostile.rows import ODD, ROWS, SHOWN
from hostile.templates import TEMPLATES
from hostile.tensors import HEADERS, VALUES
from hostile.tokenizers import TOKENIZERS

BEGIN, END = "<!-- made by tests/attacks/hostile/table.py -->", "<!-- until here -->"

CORPORA = [
    HEADERS,
    VALUES,
    CONFIGS,
    INDEXES,
    PICKLES,
    TOKENIZERS,
    TEMPLATES,
    ADAPTERS,
    GUARDS,
    MANIFESTS,
    LEDGERS,
    GRIDS,
    CELLS,
    ROWS,
    ODD,
]


@dataclass(frozen=True)
class Line:
    """A line of the table: ``cases`` distinct ones, and how often one of them is tried."""

    what: str
    cases: int
    tried: int
    seen: str


def at_doors(corpus: Corpus, doors: int) -> int:
    return sum(doors - len(case.passes) for case in corpus)


LINES = [
    Line("lying safetensors headers", len(HEADERS), at_doors(HEADERS, 5), "`no whole safetensors file: ...`"),
    Line(
        "weights that are no weights",
        len(VALUES),
        at_doors(VALUES, 5),
        "`... holds values that are not finite`",
    ),
    Line("configurations", len(CONFIGS), at_doors(CONFIGS, 5), "`asks for N values and its files hold M`"),
    Line("shards and links", len(INDEXES), at_doors(INDEXES, 5), "`is a link that leads out of its folder`"),
    Line("pickles and code", len(PICKLES), at_doors(PICKLES, 5), "`a pickle can run code when it is read`"),
    Line("tokenizers", len(TOKENIZERS), at_doors(TOKENIZERS, 5), "`gives a token the id ...`"),
    Line("chat templates", len(TEMPLATES), len(TEMPLATES), "`did not end within 20 seconds`"),
    Line("adapters", len(ADAPTERS), at_doors(ADAPTERS, 3), "`... is not followed`"),
    Line("guards", len(GUARDS), len(GUARDS), "`guard.json is broken: ...`"),
    Line("manifests", len(MANIFESTS), len(MANIFESTS), "`asepsis.json cannot be read: ...`"),
    Line("ledgers", len(LEDGERS), len(LEDGERS), "`is not as it was written`"),
    Line("grids", len(GRIDS), len(GRIDS), "`the grid cannot be read: ...`"),
    Line("cells of a grid", len(CELLS), len(CELLS), "`is no cell of a grid`"),
    Line("rows that are refused", len(ROWS), len(ROWS), "`rows.jsonl, line 2: ...`"),
    Line("rows that are taken as they are", len(ODD), len(ODD), "none: they are lawful"),
    Line(
        "text that hides, steers or runs",
        len(SHOWN),
        6 * len(SHOWN),
        "`<U+202E>` in page, terminal, Markdown and SARIF",
    ),
    Line("a full disk", len(FULL), len(FULL), "`was not written: ...; what was there before is as it was`"),
    Line("a folder that may not be written to", len(WRITERS), len(WRITERS), "`Permission denied`"),
    Line("SIGKILL while writing", len(KILLED), 20 * len(KILLED), "none: the process is gone"),
    Line(
        "SIGTERM, SIGINT, SIGKILL during work",
        3 * len(SIGNALS),
        3 * len(SIGNALS),
        "`terminated; nothing unfinished was kept`",
    ),
    Line(
        "numbers that go wrong, odd rows",
        len(NUMBERS),
        4 * len(NUMBERS),
        "`the loss was not finite by step N`",
    ),
]


def hostile_inputs() -> int:
    """Return how many distinct hostile inputs there are; faults and numbers are not inputs."""
    return sum(map(len, CORPORA))


def table() -> str:
    """Return the table as Markdown."""
    rows = [
        "| class of fault | cases | times tried | survived | lost | message seen |",
        "|---|--:|--:|--:|--:|---|",
    ]
    rows += [f"| {x.what} | {x.cases} | {x.tried} | {x.tried} | 0 | {x.seen} |" for x in LINES]
    cases, tried = sum(x.cases for x in LINES), sum(x.tried for x in LINES)
    rows.append(f"| **all** | **{cases}** | **{tried}** | **{tried}** | **0** | |")
    return "\n".join([BEGIN, "", f"Distinct hostile inputs: {hostile_inputs()}.", "", *rows, "", END])


if __name__ == "__main__":
    print(table())
