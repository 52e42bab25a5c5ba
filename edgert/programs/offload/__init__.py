"""The offload process: programs of this device ask, and a model answers here, on an edge box or in the cloud."""
