"""What is measured in each step, and where it is shown."""
