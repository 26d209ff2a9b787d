"""Chapter two: the catalogue, the weights, the networks, and what their frozen part puts out."""
