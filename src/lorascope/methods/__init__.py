"""The fine-tuning methods: how a base becomes trainable, and how what was trained leaves it again."""
