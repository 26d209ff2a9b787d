"""Making a backbone: a student learns from a source of images, labelled or taught by a larger network."""
