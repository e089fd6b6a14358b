"""The documented import: `from ollama_gpu_monitor import OllamaGPUMonitor`."""

from probe.monitor import OllamaGPUMonitor
from probe.monitored import ALERTS

__all__ = ["ALERTS", "OllamaGPUMonitor"]
