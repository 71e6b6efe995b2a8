"""Base against adapted model under one dictionary on the same images: what changed, and how sure that is."""
