"""Analysis: where the tokens, blocks and attentions are, and where tokens may leave.

It follows axes through the dataflow; it never looks at names.
"""
