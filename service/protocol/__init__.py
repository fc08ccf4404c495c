"""Wire formats: pydantic models and nothing else. What they mean is decided in `service.routes`."""
