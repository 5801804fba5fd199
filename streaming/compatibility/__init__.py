"""What programs written for mosaicml-streaming call beside datasets and writers, with its meaning, over our modules.

`streaming.base` gives these functions the names and places that such programs import. Nothing of ours uses them.
"""
