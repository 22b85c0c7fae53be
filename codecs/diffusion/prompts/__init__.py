"""The words that guide a decoder: who chooses them, how a stream holds them, and what the text encoder reads.

    guides          the contract of a guide, and what a guide may look at
    fixed           no words in the stream: every image has one prompt (CADC)
    tags            tags from a vocabulary (Diff-ICMH); taggers: from options to guide and tagger; ram: RAM++, the tagger
    captions        captions as text or tokens (SLIM); captioners: who writes them; roi: which part of an image they describe
    residual        the words that a preview lacks (ResULIC); pfo: a search for better tokens
    clip_tokens     CLIP's tokens; prior: their static prior
    sources         files and functions that users bring

Importing this package imports none of them.
"""
