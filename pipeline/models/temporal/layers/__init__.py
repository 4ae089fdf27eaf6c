"""What several temporal modules are built of: stacks, recurrences, the selective scan, attention
within a frame."""
