"""Building blocks of methods: encoders, heads, lane BatchNorm, position embeddings."""
