"""Approximate Bayesian computation on stored simulations: what a trained posterior has to beat."""

from scatterflow.baselines.abc import AbcLibrary, AbcPosterior, fit

__all__ = ["AbcLibrary", "AbcPosterior", "fit"]
