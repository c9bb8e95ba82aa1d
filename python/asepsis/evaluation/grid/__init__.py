"""One table of every defense against every attack, with its controls: declared in a file, run cell by cell, rendered.

``read_grid`` checks the whole declaration before anything runs; ``run_grid`` writes one JSON file per cell and goes on where
it was stopped; ``render`` makes the page, on which cells that were not run are blank and counted, and ``plot_cells`` its
plots. A cell trains with what a defender has and opens the test rows once, afterwards.
"""

from __future__ import annotations

from asepsis.evaluation.grid.plan import Cell, Grid, read_grid
from asepsis.evaluation.grid.plots import plot_cells
from asepsis.evaluation.grid.run import run_grid
from asepsis.evaluation.grid.table import render

__all__ = ["Cell", "Grid", "plot_cells", "read_grid", "render", "run_grid"]
