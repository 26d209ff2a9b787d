"""`graft train`: one recipe, on the folds of a study, with everything that can be asked for."""
