"""Worldtune: post-training of video world models, from raw videos to exported safetensors."""
