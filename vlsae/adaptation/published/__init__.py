"""One published layout a file; each registers itself under its name."""
