"""`python -m builders.download`: raw archives onto a disk, resumable and verified."""
