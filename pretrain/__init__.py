"""The public stage: corpus, meta-tasks, base model and hypernetwork. It reads public data only."""
