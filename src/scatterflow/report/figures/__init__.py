"""Figures of the report: each function returns a matplotlib Figure and touches nothing else."""
