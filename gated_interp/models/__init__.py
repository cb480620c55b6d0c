"""Models whose attention is studied: toys, and models with an analytic answer."""
