"""Solvers of the sparse non-negative decomposition; a file registers one under its name."""

from vlsae.registry import Registry

SOLVERS = Registry("solver", "vlsae.splice.solvers")
