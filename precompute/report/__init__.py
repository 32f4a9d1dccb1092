"""What a person looks at: the contact sheet and report.html."""
