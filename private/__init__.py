"""The one room that may read private data; everything it reads is paid for in the ledger."""
