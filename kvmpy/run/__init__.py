"""Running a vCPU: who owns an address, the shared page, answers, threads."""
