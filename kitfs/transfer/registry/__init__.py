"""OCI registries (distribution specification 1.1): transport, credentials, client, and a registry as a source."""
