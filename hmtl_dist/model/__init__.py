"""The shared timm backbone and the heads that tasks ask for."""
