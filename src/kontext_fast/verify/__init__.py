"""Whether a preset changes the images: a verification makes outputs, scores them and computes a verdict."""
