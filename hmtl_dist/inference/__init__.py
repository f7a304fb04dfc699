"""A trained model without training: its folder, what stands in it, and how it answers pictures."""
