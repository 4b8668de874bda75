"""Where bytes lie: local files, published whole or not at all, hashed once."""
