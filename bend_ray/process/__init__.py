"""What every process of ours does: logging, interrupts, memory, and libraries imported late."""
