"""Triton twins of the operations, one module each under the operation's name; loaded when a CUDA tensor arrives.

A module holds the kernels, the function that launches them and ``shipped()``, which lists every way they are launched.
The tests go through that list: each entry is compiled for sm_80 and sm_90 without a GPU, and no entry may spill
registers, want more shared memory than there is, or use an atomic operation.

Reductions go in two stages in a fixed order that depends on shapes alone, so equal inputs give equal bits.
"""
