"""One family of checks a file; ``visuomotor.data.validate`` runs them all."""
