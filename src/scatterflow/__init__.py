"""scatterflow: from a detector frame to trusted sample parameters."""
