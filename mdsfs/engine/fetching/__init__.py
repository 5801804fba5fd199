"""The fetchers: what they are asked for, the processes that do it, and the pool that runs them."""
