"""Decoders built from plain modules, and the LightningModule that trains them."""
