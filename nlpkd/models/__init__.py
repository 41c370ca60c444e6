"""Models: loading, surgery, capturing outputs, running them."""
