"""The quick engine of sparse families on the processor: one dense product a step, everything else on the codes."""
