"""What makes a guest run at all: modes, rings, page tables, descriptor tables, assembling."""
