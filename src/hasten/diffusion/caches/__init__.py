"""Cache policies: which rows a forward pass computes, and which it reads as they were."""
