"""What goes to the Hub: what is finished here, what is there, commits and the dataset card."""
