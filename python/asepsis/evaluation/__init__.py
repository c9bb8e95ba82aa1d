"""Attack, defend, measure. The only layer that may name the answer key."""
