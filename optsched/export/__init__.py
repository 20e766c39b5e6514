"""A plan for the engines that people run: launch commands and manifests."""
