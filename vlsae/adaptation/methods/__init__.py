"""One adaptation method a file; each registers itself under its name."""
