"""Many runs: checks before them, each run once, jobs in other processes, the report after them."""
