"""Model-specific registers: by number and name, what they mean, who answers for them."""
