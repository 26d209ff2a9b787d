"""Chapter three: heads, and networks trained from scratch."""
