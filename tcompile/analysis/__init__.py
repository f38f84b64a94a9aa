"""Analysis: where the tokens, blocks and attentions are, and where tokens may leave (DESIGN 5.1).

It follows axes through the dataflow; it never looks at names.
"""
