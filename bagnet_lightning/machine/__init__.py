"""What this machine is and has: device, versions, memory, and what would stop a sweep on it."""
