"""Chapter seven: packing, checking and using a model. `bundle` imports neither torch nor timm."""
