"""The stages, each one function `run(study, folder)`: what rules, command line and tests call."""
