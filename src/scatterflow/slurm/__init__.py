"""Simulations as Slurm array jobs: options of a site, Slurm's commands, the task on a node, the controller."""
