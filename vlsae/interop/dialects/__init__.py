"""One file a dialect: how to recognise it, how to read it, and how to write it where it can express a dictionary."""
