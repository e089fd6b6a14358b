"""A twin of today's Ollama: a real `llama-server`, and a small stand-in for the server around it.

Since 0.30, Ollama runs GGUF models in llama.cpp's own `llama-server`. PyPI has that program, but
no Ollama as new, and no image registry can be reached from the machines that run the tests. So
this package plays the server: the parts of its API and of its scheduler that a health check
meets. It says that it is a twin in `/api/version` and in its log.

What is real: the runner, its command line, its `/health`, `/slots` and `/completion`, loads,
tokens, memory, and models in Ollama's own layout on disk.

What is played, after the sources of 0.34.2 and checked against it (tests/e2e/test_contract.py):
which requests load a model again, the ping before a loaded runner is used, the locks that make
`/api/ps` wait, the queues, `keep_alive` and expiry, loads that end with their client, and the
order in which models are unloaded.

What is missing: GPUs (it loads on the CPU and says so), `/api/chat` and all other routes,
templates (a prompt is sent as it is), images, thinking, `format`, checks of options, retries
after a lack of memory, and downloads. It allows each runner one model file and any adapters.
"""
