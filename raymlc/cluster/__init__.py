"""The only package that imports Ray: it runs trials where there is room for them."""
