"""The engine's socket: clients, their requests, and what they hold."""
