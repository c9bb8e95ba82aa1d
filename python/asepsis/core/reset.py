"""Put the rows of some tokens back to what they were before tuning, from files to a file."""

from __future__ import annotations

from pathlib import Path

from asepsis.core.weights import Checkpoint, StoredTensor
from asepsis.core.weights.rewrite import Bytes, check_stored, copy_stored, rewrite, rounded, stored_bytes
from asepsis.core.weights.rows import TokenRows
from asepsis.core.weights.vocabulary import Ids
from asepsis.core.weights.write import SIZES
from asepsis.errors import ModelError


def reset_rows(
    base: Checkpoint, tuned: Checkpoint, output: Path, *, rows: TokenRows, ids: Ids
) -> tuple[str, ...]:
    """Write ``tuned`` into an empty folder with the word embeddings of some tokens as ``base`` has them.

    Where word embeddings are tied, output rows are the same rows; an untied output matrix stays as it is.

    Parameters
    ----------
    base, tuned
        The model it was tuned from, and the model that was handed to us.
    output
        An empty folder.
    rows
        Which rows belong together.
    ids
        Tokens of ``tuned`` to reset, each with a row in ``base``.

    Returns
    -------
    tuple of str
        Names of the tensors edited; more than one where a tied matrix is stored twice.

    Raises
    ------
    ModelError
        A token has no row in ``base``, or a value of ``tuned``, wherever it is, is not finite.
    """
    partner = dict(zip(rows.pairs[:, 1].tolist(), rows.pairs[:, 0].tolist(), strict=True))
    if unknown := [i for i in ids.tolist() if i not in partner]:
        raise ModelError(f"tokens {unknown[:5]} have no row in {base.folder} to be reset to; leave them out")
    edited = (tuned.input_embeddings, *tuned.tied_copies)
    original = base.tensors[base.input_embeddings]

    def fill(tensor: StoredTensor, region: Bytes) -> None:
        if tensor.floating:
            check_stored(tensor)
        copy_stored(tensor, region)
        if tensor.name not in edited:
            return
        width = tensor.nbytes // tensor.shape[0]
        source = stored_bytes(original).reshape(original.shape[0], -1)[[partner[i] for i in ids.tolist()]]
        region.reshape(-1, width)[ids] = rounded(source.ravel(), original.dtype, tensor.dtype).reshape(
            -1, width
        )

    words = tuned.tensors[tuned.input_embeddings]
    if original.shape[1:] != words.shape[1:] or original.dtype not in SIZES:
        raise ModelError(
            f"word embeddings are {list(words.shape)} in {tuned.folder} and {list(original.shape)} in {base.folder}: they "
            "are not versions of one model"
        )
    rewrite(tuned, output, fill)
    return edited
