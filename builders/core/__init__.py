"""What every dataset leans on: the record, the gate, the account, options, captions and images."""
