"""Measurements on an NVIDIA GPU: ``python -m benches.gpu``, or ``make bench-gpu``. benches/README.md says what each row is for."""
