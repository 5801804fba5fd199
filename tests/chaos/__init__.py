"""The chaos run: readers that check every byte, while whatever can be killed, stopped, broken or filled is."""
