"""The loops over the modules: a cache, the choice of tokens, answering and drawing."""
