"""Configuration: typed sections, YAML recipes, dotted overrides, one-line errors."""
