"""Models, samples and parameters: what the defenses are made of."""
