"""The engines that turn losses into optimizer steps, and the consolidated checkpoint."""
