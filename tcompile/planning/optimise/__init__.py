"""The optimiser: at which sites how many tokens stay, for tables of what each choice costs."""
