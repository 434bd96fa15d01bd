"""A machine that can stop at any point: what a replica writes is recorded, and each state left is opened."""
