"""What generated images are measured by: one metric a file."""
