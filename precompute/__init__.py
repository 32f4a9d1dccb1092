"""Cleaned records in, WebDataset shards of VAE latents and text embeddings out."""
