"""Names, configurations and provisioning of the streams and consumers of a namespace."""
