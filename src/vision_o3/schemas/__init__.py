"""The shapes of what travels between gateway and caller."""
