"""One file a peer: `make(root)` writes small checkpoints with that library, and its own codes and reconstructions."""
