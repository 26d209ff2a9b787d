"""Chapter five: many trials on the same folds under one budget, and the choice among them."""
