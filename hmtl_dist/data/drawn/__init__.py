"""Faces that are drawn: every label is known, and nothing is downloaded."""
