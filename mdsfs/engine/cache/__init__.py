"""What is resident, how much of it there may be, and what goes first."""
