"""What measures speed and fidelity: scripts that print a table and write JSON."""
