"""Models: from pixels and captions to arrays, one batch on the device at a time."""
