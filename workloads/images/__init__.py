"""Image workloads: vision transformers and a Wide ResNet."""
