"""The HTTP server: an API like OpenAI's in front of worker processes, one per card, behind a bounded queue.

`app` knows no worker and `worker` no HTTP: both meet at `backend.Backend`, so that another scheduler can stand between
them. Only workers import torch.
"""
