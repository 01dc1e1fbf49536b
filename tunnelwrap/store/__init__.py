"""What outlives a process on a gateway: which peer had which address."""
