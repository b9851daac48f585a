"""What the experiments show is made of: tables, pictures and sentences, for a terminal, a pipe or
a page that needs nothing else."""
