"""Fine-tuning as a rung of the study: which finalists, at what depths, for how long, and what is kept of it."""
