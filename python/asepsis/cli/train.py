"""``asepsis train``: train a model on untrusted rows under a defense, or under none as a control."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    *,
    model: Annotated[str, typer.Option(help="A folder, a hub id, demo:encoder or demo:causal.")],
    data: Annotated[str, typer.Option(help="Untrusted rows: JSONL, CSV, TSV, Parquet or a datasets id.")],
    defense: Annotated[str, typer.Option(help="A defense's name, or none for the undefended control.")],
    output: Annotated[Path, typer.Option(help="Folder to write the trained model to.")],
    clean_reference: Annotated[
        str | None, typer.Option(help="Trusted rows, where the defense needs them; auto: let it choose.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 2.0,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    max_length: Annotated[int, typer.Option(help="Tokens kept of each row.")] = 128,
    max_steps: Annotated[int | None, typer.Option(help="Steps instead of epochs.")] = None,
    seed: Annotated[int, typer.Option(help="Of batch order, dropout and new heads.")] = 0,
    lora_rank: Annotated[
        int | None, typer.Option(help="Train a LoRA adapter of this rank, not all weights.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of the defense's config."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON with the defense's fields; --set wins.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
    checkpoint_every: Annotated[
        int,
        typer.Option(
            min=0, help="Batches between checkpoints, kept in OUTPUT.checkpoints until done; 0: none."
        ),
    ] = 500,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run of the same command stopped.")
    ] = False,
) -> None:
    """Train on untrusted rows under a defense."""
    from asepsis.cli._configs import defense_config
    from asepsis.cli._progress import shown
    from asepsis.data import read
    from asepsis.training import Settings, defend
    from asepsis.training.resume import EVERY, discard

    if resume and not checkpoint_every:
        raise typer.BadParameter("--resume needs checkpoints, and --checkpoint-every 0 writes none")
    checkpoints = output.with_name(f"{output.name}.checkpoints")
    choice = defense_config(defense, config, settings or [])
    chosen = Settings(
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_length=max_length,
        seed=seed,
    )
    rows = read(data, text_column=text_column, label_column=label_column)
    reference: Any = clean_reference
    if clean_reference not in (None, "auto"):
        reference = read(
            clean_reference, text_column=text_column, label_column=label_column, n_classes=rows.n_classes
        )
    peft_config = None
    if lora_rank is not None:
        from peft import LoraConfig

        task = "SEQ_CLS" if rows.task == "classification" else "CAUSAL_LM"
        peft_config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, task_type=task)
    with shown() as progress:
        run = defend(
            model,
            rows,
            defense=choice,
            clean_reference=reference,
            settings=chosen,
            peft_config=peft_config,
            progress=progress,
            checkpoint_dir=checkpoints if checkpoint_every else None,
            checkpoint_every=checkpoint_every or EVERY,
            resume=resume,
        )
    folder = run.save_pretrained(output)
    discard(checkpoints)
    outcome = run.outcome
    verdict = outcome.report.get("verdict")
    typer.echo(f"trained on {len(rows)} rows with defense {defense}: {folder}")
    if outcome.acted.tokens:
        edited = f"overwrote the embeddings of {len(outcome.edited)}"
        typer.echo(f"flagged {outcome.acted.tokens} tokens, {edited} (see {folder / 'asepsis.json'})")
    if verdict is not None:
        typer.echo(f"verdict: {verdict}; dropped {len(outcome.flagged)} rows (see {folder / 'asepsis.json'})")
