"""What people read: diagnoses, the console, pictures."""
