"""Chapter one: a folder of photos becomes a checked dataset, folds and pixels."""
