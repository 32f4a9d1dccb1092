"""The flags of each verb, a module each, which imports nothing heavy: a slip in one is told at once."""
