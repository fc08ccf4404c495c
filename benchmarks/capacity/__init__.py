"""What `nybble plan` predicts, beside what the CPU engine does."""
