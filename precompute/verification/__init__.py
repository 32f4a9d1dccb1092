"""What `verify` looks at: the folder, the inside of shards, what they decode to, the source again."""
