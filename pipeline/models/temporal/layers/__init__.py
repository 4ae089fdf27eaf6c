"""Parts of several temporal modules: stacks, recurrences, the selective scan, attention
within a frame."""
