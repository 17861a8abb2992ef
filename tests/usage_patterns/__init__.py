"""What notebooks do with ``tfm.nlp.networks.SparseMixer``, each pattern a function of the class's maker."""
