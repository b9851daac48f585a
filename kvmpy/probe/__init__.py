"""What is tried by running guests: what this KVM runs natively, what it lacks."""
