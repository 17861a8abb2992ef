"""What `sparse_mixer.networks` is made of, and what its other modules share."""
