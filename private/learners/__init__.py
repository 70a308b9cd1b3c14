"""Private learners of many noisy steps: DP-SGD and its relatives, on one engine and one ledger."""
