"""Chapter four: out-of-fold metrics, their uncertainty, and costs."""
