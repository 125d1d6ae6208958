"""Questions asked of a pruned model."""
