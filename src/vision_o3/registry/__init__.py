"""What the product does: publish, resolve, maintain. Knows nothing of HTTP."""
