"""What scheduling does for the CPU engine's users: streams beside long prompts, shared prefixes, idleness."""
