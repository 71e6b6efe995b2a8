"""Adapted CLIPs: prompt learners and adapters, trained here or loaded, and what they changed."""
