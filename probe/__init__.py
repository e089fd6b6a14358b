"""The probe inside the Ollama container: one check, one verdict, then gone."""

__version__ = "0.1.0"
