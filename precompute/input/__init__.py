"""What DATASET names, as units of records, and their images as pixels."""
