"""Recipes of the verb make: TOML files of datasets, and what reads them."""
