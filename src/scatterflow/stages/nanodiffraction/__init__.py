"""Stages of kind `nanodiffraction`; simulate, preprocess and report are those of every kind."""
