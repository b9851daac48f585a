"""What this host is: module, verdict, topology, and what to do when it cannot run guests."""
