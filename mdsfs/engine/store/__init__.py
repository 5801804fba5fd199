"""The cache directory on the disk: folders, sparse files, and the tables that tell what is in them."""
