"""What ends a run: one frozen value per exit reason, and what each means."""
