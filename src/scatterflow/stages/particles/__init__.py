"""Stages that are of kind `particles` alone."""
