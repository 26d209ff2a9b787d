"""Chapter six: one self-contained HTML page. Imports neither torch nor timm."""
