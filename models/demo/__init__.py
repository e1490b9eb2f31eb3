"""What the demo model is made from: a low-rank adapter, its tokenizer and configuration, and the
training script.
"""
