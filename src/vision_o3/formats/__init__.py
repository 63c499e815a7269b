"""What files are, by their content. Header-level, bounded, nothing is executed."""
