"""The pages that are made from the code, a file each."""
