"""Job traces, replayed under several scheduling policies."""
