"""As the package says."""
