"""What training reads: rows of files, examples made of them, and batches in an order that can be resumed."""
