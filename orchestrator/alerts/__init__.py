"""Alert channels: how people are notified, one small port and an implementation per channel."""
