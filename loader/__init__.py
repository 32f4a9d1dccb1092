"""The streaming loader: shards of latents in, training batches out."""
