"""Packed models behind HTTP: a page for people, an interface for programs. Imports neither torch nor timm."""
