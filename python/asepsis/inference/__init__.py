"""Guards: what stands in front of a model that may be poisoned, at inference."""
