"""The private stage: the only room that reads private data, and only through the ledger."""
