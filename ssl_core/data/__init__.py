"""The data plane: images become shards and a manifest, and a manifest becomes samples by position."""
