"""The quick engine of sparse families: one dense product a step, everything else on the codes."""
