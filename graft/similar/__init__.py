"""Similar images: a folder of photos becomes an index that is searched by what the model sees in them."""
